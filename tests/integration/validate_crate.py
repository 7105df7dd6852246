"""Validate a crate against Workflow Run Crate 0.5 without a network: prints the issues as JSON.

Runs in the environment of tests/envs/rocrate-validator.lock:  python validate_crate.py CRATE FOLDER
"""

import json
import sys
from importlib import resources
from pathlib import Path

import requests
from requests_cache import CachedResponse, CachedSession
from rocrate_validator import models, services

CONTEXT = "https://w3id.org/ro/crate/1.1/context"


def keep_context(cache: Path) -> None:
    """Put the context that the package rocrate ships where the validator looks for what it fetched."""
    content = resources.files("rocrate").joinpath("data/ro-crate.jsonld").read_bytes()
    response = CachedResponse(
        url=CONTEXT, status_code=200, headers={"Content-Type": "application/ld+json"}, content=content
    )
    with CachedSession(str(cache), backend="sqlite", expire_after=-1) as session:
        session.cache.responses[session.cache.create_key(requests.Request("GET", CONTEXT))] = response


def main(crate: Path, folder: Path) -> None:
    keep_context(folder / "cache")
    settings = services.ValidationSettings(
        rocrate_uri=crate,
        profile_identifier="workflow-run-crate-0.5",
        requirement_severity=models.Severity.RECOMMENDED,
        cache_path=folder / "cache",
        offline=True,
    )
    issues = services.validate(settings).get_issues()
    json.dump([[str(issue.severity.name), issue.check.identifier, issue.message] for issue in issues], sys.stdout)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
