"""Crates to attack with: one that the project's own script writes of a finished study, and forgeries of it."""

import hashlib
import json
import zipfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

import write_crate
from saeflow import record, reproduce
from saeflow.config import paths
from saeflow.config.study import Study
from saeflow.publish import crate_layout as layout


def write(study: Study, folder: Path) -> Path:
    """The crate of a study whose results are stand-ins: everything but their numbers is as `make crate` writes it."""
    results = folder / study.study
    (results / "tables").mkdir(parents=True)
    (results / "logs").mkdir()
    pd.DataFrame({"sae": ["a", "b"], "l0": [8.0, 9.0]}).to_parquet(results / "tables" / "saes.parquet")
    (results / "report.html").write_text("<html></html>")
    (results / "weights.safetensors").write_bytes(b"by digest")
    files = [results / "tables", results / "report.html", results / "weights.safetensors"]
    reproduce.write_manifest(results / "MANIFEST.sha256", reproduce.manifest(results, files))
    now = datetime.now(UTC).isoformat(timespec="seconds")
    job = {"rule": "train_saes", "started": now, "ended": now, "threads": 1, "processor": record.processor()}
    job |= {"processors": 2, "memory_mb": 4096, "gpus": [], "container": None, "versions": record.versions()}
    (results / "logs" / "train_saes.log").write_text(f"now INFO {record.__name__}: ran {json.dumps(job)}\n")
    crate = folder / f"{study.study}.crate.zip"
    cfg = {"study": paths.without_files(study), "files": paths.files_of(study), "snakemake": "9.27.0"}
    write_crate.main(manifest=results / "MANIFEST.sha256", crate=crate, cfg=cfg)
    return crate


class Forgery:
    """Somebody's crate, unpacked and changed; `seal` makes every digest fit again, as a forger would."""

    def __init__(self, crate: Path, root: Path) -> None:
        self.root = root
        with zipfile.ZipFile(crate) as archive:
            archive.extractall(root)

    def study(self, changes: Mapping[str, Any]) -> None:
        """Set keys of the study, dotted."""
        path = self.root / layout.STUDY_FILE
        content = yaml.safe_load(path.read_text())
        for key, value in changes.items():
            *sections, name = key.split(".")
            section = content
            for step in sections:
                section = section[step]
            section[name] = value
        path.write_text(yaml.safe_dump(content, sort_keys=False))

    def metadata(self) -> dict[str, Any]:
        return json.loads((self.root / layout.METADATA).read_text())

    def declare(self, content: Any) -> None:
        (self.root / layout.METADATA).write_text(json.dumps(content))

    def seal(self) -> None:
        """The manifest and the metadata again, by what is there."""
        results = self.root / layout.STUDY
        kept = {n: d for n, d in reproduce.read_manifest(results / "MANIFEST.sha256").items() if not layout.is_shown(n)}
        here = reproduce.manifest(results, [results])
        shown = {name: digest for name, digest in here.items() if f"{layout.STUDY}/{name}" not in layout.BESIDE}
        reproduce.write_manifest(results / "MANIFEST.sha256", kept | shown)
        content = self.metadata()
        graph = {entity["@id"]: entity for entity in content["@graph"]}
        for path in filter(Path.is_file, self.root.rglob("*")):
            name = path.relative_to(self.root).as_posix()
            if name != layout.METADATA:
                entity = graph.setdefault(name, {"@id": name, "@type": "File"})
                entity["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        gone = [name for name in graph if "sha256" in graph[name] and not (self.root / name).is_file()]
        self.declare(content | {"@graph": [entity for name, entity in graph.items() if name not in gone]})

    def pack(self, target: Path) -> Path:
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(filter(Path.is_file, self.root.rglob("*"))):
                archive.write(path, path.relative_to(self.root).as_posix())
        return target
