"""Write the finished study as a Workflow Run RO-Crate: settings, workflow, locks, machines, digests and the report."""

from pathlib import Path

from saeflow import record
from saeflow.config import paths
from saeflow.config.reading import parse
from saeflow.library import PACKAGE
from saeflow.publish import provenance, study_inputs
from saeflow.rule import run


def main(*, manifest: Path, crate: Path, cfg: dict) -> None:
    """
    Arguments:
        manifest: digests of the results beside it, and of nothing that changed since; the jobs' logs lie there too.
        crate: .zip to write.
        cfg: `study` (the whole config, without paths of this machine), `files` (these, by key), `snakemake` (its
            version).
    """
    # A later comparison is no part of the run.
    records = [job for job in record.read(manifest.parent / "logs") if job["rule"] != "verify"]
    inputs = study_inputs.digests_of(parse(paths.with_files(cfg["study"], cfg["files"])))
    provenance.write(
        provenance.Run(cfg["study"], inputs, manifest, records, PACKAGE.parents[1], cfg["snakemake"]), crate
    )


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
