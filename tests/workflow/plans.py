"""Plan studies in one process: `python plans.py FOLDER STUDY...` prints each that cannot be planned, and why."""

import sys
from pathlib import Path

from snakemake.api import SnakemakeApi
from snakemake.settings.types import ConfigSettings, DAGSettings, OutputSettings, Quietness, ResourceSettings

ROOT = Path(__file__).parents[2]


def plan(study: Path, folder: Path) -> None:
    """What `snakemake --dry-run` does with a study; raises what it fails with."""
    with SnakemakeApi(OutputSettings(quiet={Quietness.ALL}, dryrun=True)) as api:
        workflow = api.workflow(
            resource_settings=ResourceSettings(cores=1),
            config_settings=ConfigSettings(configfiles=[study]),
            snakefile=ROOT / "Snakefile",
            workdir=folder,
        )
        workflow.dag(dag_settings=DAGSettings()).execute_workflow(executor="dryrun")


def main() -> None:
    folder, *studies = map(Path, sys.argv[1:])
    for study in studies:
        try:
            plan(study, folder)
        except Exception as error:
            sys.stdout.write(f"{study}: {error}\n")


if __name__ == "__main__":
    main()
