"""Write the finished study as a Workflow Run RO-Crate: settings, workflow, locks, machines, digests and the report."""

from pathlib import Path

from saeflow import record
from saeflow.library import PACKAGE
from saeflow.publish import provenance
from saeflow.rule import run


def main(*, manifest: Path, crate: Path, cfg: dict) -> None:
    """
    Arguments:
        manifest: digests of the results beside it, and of nothing that changed since; the jobs' logs lie there too.
        crate: .zip to write.
        cfg: `study` (the whole config), `snakemake` (its version).
    """
    # A later comparison is no part of the run.
    records = [job for job in record.read(manifest.parent / "logs") if job["rule"] != "verify"]
    provenance.write(
        provenance.Run(cfg["study"], manifest, records, project=PACKAGE.parents[1], snakemake=cfg["snakemake"]), crate
    )


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
