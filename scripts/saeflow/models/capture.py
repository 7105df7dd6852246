"""One pass of a network over its input writes the activations of every hook point.

Forward, copy and write overlap: while the network reads a batch, the batch before it goes to the stores, whose writers
have a thread each. Memory holds two batches and a few chunks per hook point, whatever the input's length.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saeflow.activations import PartWriter
from saeflow.datasets.batch import Batch
from saeflow.models.networks import Hooked, Network


class CaptureError(ValueError):
    """Activations that cannot be stored; names the hook point, the row and what to change."""


def capture(network: Network, batches: Iterable[Batch], writers: Mapping[Hooked, PartWriter]) -> int:
    """Write the activations of all rows, in their order.

    Arguments:
        batches: of the network's input.
        writers: of the stores of each member and hook point, with the columns of the input.
    Returns:
        the number of rows that each store got.
    Raises:
        CaptureError: an activation that is not finite.
    """
    n_rows = 0
    dtypes = {key: writer.spec.torch_dtype for key, writer in writers.items()}
    waiting: _Batch | None = None
    for batch in batches:
        values = network.values(batch)
        done, waiting = waiting, _Batch.of(values, batch.source, dtypes)
        if done:
            done.append_to(writers)
        n_rows += len(batch.source)
    if waiting:
        waiting.append_to(writers)
    return n_rows


@dataclass
class _Batch:
    """Activations on their way to the stores."""

    values: dict[Hooked, Float[Tensor, "n _"]]
    source: Int[Tensor, "n columns"]
    copied: "torch.cuda.Event | None" = None

    @classmethod
    def of(cls, values: dict[Hooked, Tensor], source: Tensor, dtypes: Mapping[Hooked, torch.dtype]) -> "_Batch":
        """Begin to copy from the devices, on a stream of their own, so that the next forward pass need not wait."""
        values = {name: value.to(dtypes[name]) for name, value in values.items()}
        if not any(value.is_cuda for value in values.values()):
            return cls(values, source)
        stream = _copies()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            host = {}
            for name, value in values.items():
                host[name] = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
                host[name].copy_(value, non_blocking=True)
                value.record_stream(stream)
            event = torch.cuda.Event()
            event.record(stream)
        return cls(host, source, event)

    def append_to(self, writers: Mapping[Hooked, PartWriter]) -> None:
        if self.copied is not None:
            self.copied.synchronize()
        for key, value in self.values.items():
            try:
                writers[key].append(value, self.source)
            except ValueError:
                self._explain(key, value, writers[key])
                raise

    def _explain(self, key: Hooked, value: Tensor, writer: PartWriter) -> None:
        bad = (~value.isfinite()).any(dim=1).nonzero()
        if len(bad):
            source = self.source[int(bad[0])].tolist()
            place = ", ".join(
                f"{name} {number}" for name, number in zip(writer.spec.source_columns, source, strict=True)
            )
            raise CaptureError(
                f"hook point '{key[1]}': the activation of {place} is not finite, or too large for {writer.spec.dtype} "
                "(activations.dtype); load the model in float32 or bfloat16, with attention 'eager', and store what it "
                "gives in that type"
            ) from None


_STREAMS: list["torch.cuda.Stream"] = []


def _copies() -> "torch.cuda.Stream":
    """The one stream that copies use."""
    if not _STREAMS:
        _STREAMS.append(torch.cuda.Stream())
    return _STREAMS[0]
