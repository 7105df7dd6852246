"""Compare the study with a reference: a manifest, digest by digest, or a study's folder, table by table."""

import logging
from pathlib import Path

from saeflow import comparison, reproduce
from saeflow.rule import run


def main(*, manifest: Path, verdict: Path, cfg: dict) -> None:
    ours = reproduce.read_manifest(manifest)
    if cfg["reference"] is None:
        verdict.write_text(f"{len(ours)} digests in {manifest.name}; no reference to compare with\n", encoding="utf-8")
        return
    reference = Path(cfg["reference"])
    if reference.is_dir():
        within = cfg["verify"]
        result = comparison.compare_tables(manifest.parent, reference, **within)
        how = f"tables within {within['atol']:g} + {within['rtol']:g} |reference|"
    else:
        result = comparison.compare_manifests(ours, reproduce.read_manifest(reference))
        how = "byte by byte"
    logging.info("compared with %s\n%s", reference, "\n".join(result.lines()))
    if not result.equal:
        raise comparison.DifferentError("\n".join(result.lines()))
    verdict.write_text(f"{result.lines()[0]}; {how}, reference {reference}\n", encoding="utf-8")


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
