"""One pass of a language model over its text writes the activations of every hook point.

Forward, copy and write overlap: while the model reads a batch, the batch before it goes to the stores, whose writers
have a thread each. Memory holds two batches and a few chunks per hook point, whatever the text's length.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from saeflow.activations import PartWriter, rows_of
from saeflow.config.language import Hook
from saeflow.datasets.contexts import Contexts, TokenFile
from saeflow.models.hook_points import Recorder
from saeflow.models.language import LanguageModelError, input_device

log = logging.getLogger(__name__)

SOURCE = ("document", "position", "context", "token")
"""Where a row of a store came from: number of the document, place in it, number of the context, id of the token."""


@dataclass(frozen=True)
class Share:
    """What one of several jobs captures of a file of contexts.

    Arguments:
        contexts: those whose forward passes give its rows, from the start of a batch.
        rows: rows of the store that it writes, counted from the first text token of `contexts`.
    """

    contexts: range
    rows: range

    @classmethod
    def of(cls, file: TokenFile, part: int, n_parts: int, *, chunk_rows: int, batch_size: int) -> Self:
        """Part `part` of `n_parts`: whole chunks of the store, and whole batches of the model.

        A batch across the border of two parts is run by both, whole, as `saeflow.activations.batches_of` says.
        """
        if n_parts == 1:
            return cls(range(len(file)), range(len(file) * file.context_size))
        before = np.concatenate([[0], file.text_tokens().cumsum()])
        rows = rows_of(part, n_parts, int(before[-1]), chunk_rows)
        if not rows:
            return cls(range(0), range(0))
        first = int(np.searchsorted(before, rows.start, side="right")) - 1
        first -= first % batch_size
        last = int(np.searchsorted(before, rows.stop, side="left"))
        last = min(-(-last // batch_size) * batch_size, len(file))
        return cls(range(first, last), range(rows.start - int(before[first]), rows.stop - int(before[first])))


def width(model: nn.Module, hooks: Mapping[str, Hook], token: int) -> dict[str, int]:
    """Width of the activations at each hook point, from reading two tokens.

    Raises:
        HookPointError: a hook point that the model does not have, or that gives no activations.
    """
    tokens = torch.full((1, 2), token, device=input_device(model))
    return {name: value.shape[1] for name, value in Recorder(model, hooks)(tokens, torch.tensor([0])).items()}


def capture(
    model: nn.Module,
    contexts: Iterable[Contexts],
    hooks: Mapping[str, Hook],
    writers: Mapping[str, PartWriter],
    share: Share | None = None,
) -> int:
    """Write the activations of all text tokens, in their order.

    Arguments:
        model: as `saeflow.models.language.load` gives it.
        contexts: batches of contexts.
        hooks: hook points by name.
        writers: of the stores, by the same names, with the columns SOURCE.
        share: whose contexts these are, and which of their text tokens are written; all if not given.
    Returns:
        the number of rows that each store got.
    Raises:
        LanguageModelError: an activation that is not finite; names the hook point, the document and the place.
    """
    recorder, device, n_seen, n_rows = Recorder(model, hooks), input_device(model), 0, 0
    first = share.contexts.start if share else 0
    waiting: _Batch | None = None
    for batch in contexts:
        is_text = batch.is_text
        rows = torch.from_numpy(is_text.ravel().nonzero()[0])
        n_in_batch = len(rows)
        if share:
            rows = rows[max(share.rows.start - n_seen, 0) : max(share.rows.stop - n_seen, 0)]
        values = recorder(torch.from_numpy(batch.tokens).to(device, non_blocking=True), rows)
        numbers = torch.arange(first, first + len(batch))[:, None].expand(is_text.shape)
        columns = (torch.from_numpy(batch.document), torch.from_numpy(batch.position), numbers)
        source = torch.stack([c.reshape(-1)[rows] for c in (*columns, torch.from_numpy(batch.tokens))], dim=1)
        done, waiting = waiting, _Batch.of(values, source, {n: w.spec.torch_dtype for n, w in writers.items()})
        if done:
            done.append_to(writers)
        first, n_seen, n_rows = first + len(batch), n_seen + n_in_batch, n_rows + len(rows)
    if waiting:
        waiting.append_to(writers)
    return n_rows


@dataclass
class _Batch:
    """Activations on their way to the stores."""

    values: dict[str, Float[Tensor, "n _"]]
    source: Int[Tensor, "n columns"]
    copied: "torch.cuda.Event | None" = None

    @classmethod
    def of(cls, values: dict[str, Tensor], source: Tensor, dtypes: Mapping[str, torch.dtype]) -> "_Batch":
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

    def append_to(self, writers: Mapping[str, PartWriter]) -> None:
        if self.copied is not None:
            self.copied.synchronize()
        for name, value in self.values.items():
            try:
                writers[name].append(value, self.source)
            except ValueError:
                self._explain(name, value)
                raise

    def _explain(self, name: str, value: Tensor) -> None:
        bad = (~value.isfinite()).any(dim=1).nonzero()
        if len(bad):
            document, position, _, token = self.source[int(bad[0])].tolist()
            raise LanguageModelError(
                f"hook point '{name}': the activation of token {token} (document {document}, position {position}) is "
                "not finite, or too large for language.activations.dtype; load the model in float32 or bfloat16, with "
                "attention 'eager', and store what it gives in that type"
            ) from None


_STREAMS: list["torch.cuda.Stream"] = []


def _copies() -> "torch.cuda.Stream":
    """The one stream that copies use."""
    if not _STREAMS:
        _STREAMS.append(torch.cuda.Stream())
    return _STREAMS[0]
