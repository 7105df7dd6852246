"""Write the sha256 of every result of the study, in the form that `sha256sum -c` reads."""

from pathlib import Path

from saeflow import reproduce
from saeflow.rule import run


def main(*, results: list[Path], manifest: Path) -> None:
    reproduce.write_manifest(manifest, reproduce.manifest(manifest.parent, results))


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
