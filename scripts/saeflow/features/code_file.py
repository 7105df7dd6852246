"""Sparse codes of a long stream on disk, so that what is asked of them again costs neither an encoder nor memory."""

from collections.abc import Iterator
from pathlib import Path
from typing import Self

import numpy as np
import torch
from jaxtyping import Float, Int

from saeflow.sae.codes import Codes

_FILES = {"values": np.float32, "indices": np.int32, "offsets": np.int64}


class CodeFile:
    """Codes of rows, appended block by block, then read in order or by row.

    Per active latent 8 bytes on disk, per row 8; in memory only what is read.

    Arguments:
        folder: empty, for three files.
        d_sae: number of latents.
    """

    def __init__(self, folder: Path, d_sae: int) -> None:
        self._paths = {name: Path(folder) / name for name in _FILES}
        self._files = {name: path.open("wb") for name, path in self._paths.items()}
        self.d_sae = d_sae
        self.n_rows = self.n_active = 0
        self._arrays: dict[str, np.ndarray] = {}
        self._files["offsets"].write(np.zeros(1, np.int64).tobytes())

    def append(self, codes: Codes) -> None:
        """Take the codes of the next rows."""
        host = codes.to("cpu")
        parts = {
            "values": host.values.float().numpy(),
            "indices": host.indices.numpy(),
            "offsets": host.offsets[1:].numpy() + self.n_active,
        }
        for name, part in parts.items():
            self._files[name].write(part.astype(_FILES[name], copy=False).tobytes())
        self.n_rows += len(codes)
        self.n_active += len(host.values)

    def close(self) -> Self:
        """End of writing; reading begins here."""
        for name, file in self._files.items():
            file.close()
            size = self.n_rows + 1 if name == "offsets" else self.n_active
            empty = np.empty(0, _FILES[name])
            self._arrays[name] = np.memmap(self._paths[name], _FILES[name], "r", shape=(size,)) if size else empty
        return self

    def blocks(self, rows: int) -> Iterator[tuple[int, Codes]]:
        """Codes of `rows` rows at a time, each with the number of its first row."""
        for first in range(0, self.n_rows, rows):
            offsets = np.array(self._arrays["offsets"][first : first + rows + 1])
            span = slice(int(offsets[0]), int(offsets[-1]))
            values, indices = (torch.from_numpy(np.array(self._arrays[name][span])) for name in ("values", "indices"))
            yield first, Codes(values, indices, torch.from_numpy(offsets - offsets[0]), self.d_sae)

    def values_at(self, rows: Int[np.ndarray, " n"], latents: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Values of single latents on single rows, 0 where they do not fire.

        Arguments:
            rows, latents: which, pairwise.
        """
        wanted, where = np.unique(rows, return_inverse=True)
        starts = np.asarray(self._arrays["offsets"][wanted])
        lengths = np.asarray(self._arrays["offsets"][wanted + 1]) - starts
        # Entries of all wanted rows, one row after another.
        ends = np.cumsum(lengths)
        entries = np.arange(int(ends[-1]) if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)
        keys = np.repeat(np.arange(len(wanted)), lengths) * self.d_sae + self._arrays["indices"][entries]
        asked = where * self.d_sae + latents
        at = np.searchsorted(keys, asked)
        found = np.zeros(len(rows), np.float32)
        inside = at < len(keys)
        hit = inside.copy()
        hit[inside] = keys[at[inside]] == asked[inside]
        found[hit] = self._arrays["values"][entries[at[hit]]]
        return found
