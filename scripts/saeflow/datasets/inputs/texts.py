"""Text as an input: a row is a text token.

Special tokens and the first token of each context, whose activations have another norm than all others, give no row.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from saeflow.activations.parts import rows_of
from saeflow.datasets import texts
from saeflow.datasets.batch import Batch
from saeflow.datasets.contexts import Contexts, TokenFile
from saeflow.datasets.inputs import INPUTS, Input


@INPUTS.register("texts")
class Texts(Input):
    """The files of `tokenize_texts`, one of each split.

    The columns are the number of the document, the place in it, the number of the context, and the token's id.
    """

    splits = texts.SPLITS
    columns = ("document", "position", "context", "token")

    def __init__(self, files: dict[str, TokenFile]) -> None:
        self.files = files

    @classmethod
    def open(cls, files: Sequence[Path]) -> Self:
        return cls(dict(zip(cls.splits, map(TokenFile.open, files), strict=True)))

    @property
    def context_size(self) -> int:
        """Tokens of a context."""
        return self.files[self.splits[0]].context_size

    def batches(self, split: str, part: int, n_parts: int, *, batch_size: int, chunk_rows: int) -> Iterator[Batch]:
        file = self.files[split]
        contexts, rows = range(len(file)), range(len(file) * file.context_size)
        if n_parts > 1:
            contexts, rows = _share(file, part, n_parts, batch_size=batch_size, chunk_rows=chunk_rows)
        yield from batches_of(file.batches(batch_size, contexts), contexts.start, rows)

    def metadata(self, split: str) -> dict[str, Any]:
        file = self.files[split]
        return {"split": split, "context_size": file.context_size, "start_token": file.start}


def batches_of(contexts: Iterable[Contexts], first: int = 0, rows: range | None = None) -> Iterator[Batch]:
    """Contexts as batches of an input.

    Arguments:
        contexts: batches of contexts.
        first: number of the first context.
        rows: those that are stored, counted from the first text token; all if not given.
    """
    n_seen = 0
    for batch in contexts:
        is_text = batch.is_text
        found = torch.from_numpy(is_text.ravel().nonzero()[0])
        kept = found if rows is None else found[max(rows.start - n_seen, 0) : max(rows.stop - n_seen, 0)]
        numbers = torch.arange(first, first + len(batch))[:, None].expand(is_text.shape)
        tokens = torch.from_numpy(batch.tokens)
        columns = (torch.from_numpy(batch.document), torch.from_numpy(batch.position), numbers, tokens)
        yield Batch(tokens, kept, torch.stack([column.reshape(-1)[kept] for column in columns], dim=1))
        first, n_seen = first + len(batch), n_seen + len(found)


def _share(file: TokenFile, part: int, n_parts: int, *, batch_size: int, chunk_rows: int) -> tuple[range, range]:
    """Contexts whose forward passes give a part's rows, from the start of a batch; and these rows, counted from the
    first text token of the contexts."""
    before = np.concatenate([[0], file.text_tokens().cumsum()])
    rows = rows_of(part, n_parts, int(before[-1]), chunk_rows)
    if not rows:
        return range(0), range(0)
    first = int(np.searchsorted(before, rows.start, side="right")) - 1
    first -= first % batch_size
    last = int(np.searchsorted(before, rows.stop, side="left"))
    last = min(-(-last // batch_size) * batch_size, len(file))
    return range(first, last), range(rows.start - int(before[first]), rows.stop - int(before[first]))
