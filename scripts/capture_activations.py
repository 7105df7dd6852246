"""Capture activations: one pass of each split through a network, or through a stack of them, writes every hook point.

Each store holds one member, hook point and split. With several jobs, each writes its own part of every store.
"""

from contextlib import ExitStack
from itertools import product
from pathlib import Path

from saeflow.activations import Part, PartWriter, write_manifest
from saeflow.datasets.inputs import INPUTS
from saeflow.models.capture import capture
from saeflow.models.networks import NETWORKS
from saeflow.rule import run


def main(*, given: list[Path], network: list[Path], parts: list[Path], manifests: list[Path], cfg: dict) -> None:
    """
    Arguments:
        given: files of the input.
        network: files of the network.
        parts: folder of this job's part of each store, in the order members x hook points x splits.
        manifests: manifest.json of each store, in that order, if this job writes the whole of them; else none.
        cfg: `kind` of the network, `settings` (what the study says of it), `activations` (section), `device`, and with
            several jobs `shard`, the number of this one.
    Raises:
        ValueError: network, input, hook points and settings that do not go with one another; says which.
    """
    kind, stored = NETWORKS[cfg["kind"]], cfg["activations"]
    opened = INPUTS[kind.reads].open(given)
    reader = kind.open(network, opened, cfg["settings"], cfg["device"])
    widths = reader.widths()
    folders = dict(zip(product(range(reader.n_members), reader.hooks, opened.splits), parts, strict=True))
    for split in opened.splits:
        with ExitStack() as stack:
            writers = {
                (member, hook): stack.enter_context(
                    PartWriter(
                        folders[member, hook, split],
                        d=widths[hook],
                        dtype=stored["dtype"],
                        chunk_rows=stored["chunk_rows"],
                        source_columns=opened.columns,
                        metadata=opened.metadata(split) | reader.metadata(member, hook),
                        if_exists="replace",
                    )
                )
                for member, hook in product(range(reader.n_members), reader.hooks)
            }
            batches = opened.batches(
                split,
                int(cfg.get("shard", 0)),
                stored["shards"],
                batch_size=stored["batch_size"],
                chunk_rows=stored["chunk_rows"],
            )
            capture(reader, batches, writers)
    for manifest, part in zip(manifests, parts, strict=False):
        write_manifest(manifest.parent, [Part.read(part)])


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
