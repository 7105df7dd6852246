"""Activation stores: written while a model runs, larger than memory, streamed shuffled.

with ActivationStore.create("activations", d=512) as writer:
    for x in activations_of_my_model():
        writer.append(x)

store = ActivationStore.open("activations")
for batch in store.batches(4096, seed=0, steps=10_000):
    ...
"""

from saeflow.activations.layout import Part, StoreError, write_manifest
from saeflow.activations.parts import batches_of, rows_of
from saeflow.activations.store import ActivationStore
from saeflow.activations.writer import PartWriter

__all__ = ["ActivationStore", "Part", "PartWriter", "StoreError", "batches_of", "rows_of", "write_manifest"]
