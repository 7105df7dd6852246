"""Gather the parts that several capture jobs wrote: the manifest of each store, with the digest of every chunk."""

from pathlib import Path

from saeflow.activations import Part, write_manifest
from saeflow.rule import run


def main(*, parts: list[Path], manifests: list[Path]) -> None:
    """
    Arguments:
        parts: folders of all parts of all stores; those of a store in the order of their rows.
        manifests: manifest.json to write, one per store.
    Raises:
        StoreError: a part that is unfinished, or parts that do not fit one another.
    """
    for manifest in manifests:
        write_manifest(manifest.parent, [Part.read(part) for part in parts if part.parent == manifest.parent])


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
