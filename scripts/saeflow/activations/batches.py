"""Batches of a store as a stream that can be left and taken up again at any batch."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from saeflow.activations.buffer import Buffer, DeviceBuffer
from saeflow.activations.chunks import ChunkedRows
from saeflow.activations.layout import StoreError
from saeflow.activations.shuffle import MixingBuffers, Quality, row_permutation

Shuffle = Literal["chunks", "rows"]


class Order(ABC):
    """Rows of the store in the order of an epoch, on a device."""

    device = torch.device("cpu")

    @abstractmethod
    def take(self, epoch: int, start: int, out: Shaped[Tensor, "n width"]) -> None:
        """Copy the rows at positions `start`, `start` + 1, ... of an epoch into `out`."""


class InOrder(Order):
    """Rows as they were written."""

    def __init__(self, rows: ChunkedRows) -> None:
        self._rows = rows

    def take(self, epoch: int, start: int, out: Shaped[Tensor, "n width"]) -> None:
        self._rows.read(start, out)


class ShuffledRows(Order):
    """One permutation of all rows per epoch."""

    def __init__(self, rows: ChunkedRows, seed: int) -> None:
        self._rows = rows
        self._seed = seed
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    def take(self, epoch: int, start: int, out: Shaped[Tensor, "n width"]) -> None:
        if epoch != self._epoch:
            self._order, self._epoch = row_permutation(len(self._rows), seed=self._seed, epoch=epoch), epoch
        self._rows.gather(self._order[start : start + len(out)], out)


class ShuffledChunks(Order):
    """Blocks mixed in a buffer: see `shuffle`."""

    def __init__(self, buffers: MixingBuffers, buffer: Buffer) -> None:
        self.device = buffer.device
        self._buffers = buffers
        self._buffer = buffer
        self._epoch = -1
        self._deal: list[np.ndarray] = []
        self._starts = np.zeros(1, dtype=np.int64)
        self._showing: tuple[int, int] | None = None
        self._order = torch.empty(0, dtype=torch.int64)

    def take(self, epoch: int, start: int, out: Shaped[Tensor, "n width"]) -> None:
        if epoch != self._epoch:
            self._deal, self._epoch = self._buffers.deal(epoch), epoch
            sizes = [self._buffers.n_rows[blocks].sum() for blocks in self._deal]
            self._starts = np.concatenate([[0], np.cumsum(sizes)])
        done = 0
        while done < len(out):
            buffer = int(np.searchsorted(self._starts, start + done, side="right")) - 1
            self._show(epoch, buffer)
            first = start + done - int(self._starts[buffer])
            n = min(len(out) - done, len(self._order) - first)
            torch.index_select(self._buffer.memory, 0, self._order[first : first + n], out=out[done : done + n])
            done += n

    def _show(self, epoch: int, buffer: int) -> None:
        if self._showing == (epoch, buffer):
            return
        last = buffer + 1 == len(self._deal)
        following = self._buffers.deal(epoch + 1)[0] if last else self._deal[buffer + 1]
        self._buffer.hold(self._deal[buffer], following)
        n_rows = int(self._starts[buffer + 1] - self._starts[buffer])
        self._order = torch.from_numpy(self._buffers.row_order(epoch, buffer, n_rows)).to(self.device)
        self._showing = epoch, buffer


class Batches(Iterator[Tensor]):
    """Batches [batch_size, d], one after another.

    All epochs form one stream of rows, cut into batches: no row is left out at the end of an epoch, and a batch may
    hold rows of two epochs. With `epochs`, the last batch may be shorter.
    """

    def __init__(
        self,
        rows: ChunkedRows,
        batch_size: int,
        *,
        n_rows: int,
        order: Order,
        device: torch.device | str,
        dtype: torch.dtype,
        settings: Mapping[str, Any],
        quality: Quality | None,
    ) -> None:
        """
        Arguments:
            rows: what the store holds.
            batch_size: rows per batch.
            n_rows: rows of the whole stream, over all epochs.
            order: order of the rows.
            device: where batches go.
            dtype: number type of batches.
            settings: what the order depends on; a state is taken up only where it is equal.
            quality: of the shuffle "chunks".
        """
        self._rows = rows
        self._batch_size = batch_size
        self._n_rows = n_rows
        self._order = order
        self._device = torch.device(device)
        self._dtype = dtype
        self._settings = dict(settings)
        self._staging = rows.empty(0)
        self.quality = quality
        self.position = 0

    def __len__(self) -> int:
        """Batches of the whole stream."""
        return -(-self._n_rows // self._batch_size)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Float[Tensor, "batch d"]:
        start = self.position * self._batch_size
        if start >= self._n_rows:
            raise StopIteration
        n = min(self._batch_size, self._n_rows - start)
        out = self._stage(n)
        done = 0
        while done < n:
            epoch, at = divmod(start + done, len(self._rows))
            m = min(n - done, len(self._rows) - at)
            self._order.take(epoch, at, out[done : done + m])
            done += m
        self.position += 1
        # The device converts, so that only the store's bytes cross to it.
        return out.to(self._device, non_blocking=True).to(self._dtype)

    def _stage(self, n: int) -> Shaped[Tensor, "n width"]:
        """Memory to pick rows into, of the store's type."""
        if self._order.device.type != "cpu":
            return torch.empty(n, self._rows.width, dtype=self._rows.dtype, device=self._order.device)
        if self._device.type != "cpu" or self._rows.dtype == self._dtype:
            # torch keeps pinned memory from being reused before its copy to the device is done.
            return self._rows.empty(n, pin=self._device.type == "cuda")
        if len(self._staging) < n:
            self._staging = self._rows.empty(n)
        return self._staging[:n]

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is, for JSON: after `load_state_dict` the next batch is the same."""
        return {"position": self.position, **self._settings}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where another stream was.

        Raises:
            StoreError: that stream had another order; names the setting.
        """
        for name, value in self._settings.items():
            if state.get(name) != value:
                raise StoreError(f"{name}: the state has {state.get(name)!r}, these batches have {value!r}")
        self.position = int(state["position"])


def make_order(
    rows: ChunkedRows,
    shuffle: Shuffle | None,
    *,
    seed: int,
    device: torch.device | str,
    block_bytes: int,
    buffer_bytes: int,
) -> tuple[Order, Quality | None]:
    """The order that `shuffle` names, and for "chunks" how well it mixes."""
    if shuffle is None:
        return InOrder(rows), None
    if shuffle == "rows":
        return ShuffledRows(rows, seed), None
    if shuffle != "chunks":
        raise ValueError(f"shuffle: {shuffle!r} is none of {', '.join(get_args(Shuffle))}, None")
    row_bytes = rows.width * rows.dtype.itemsize
    buffers = MixingBuffers(
        np.diff(rows.starts),
        block_rows=max(1, block_bytes // row_bytes),
        buffer_rows=max(1, buffer_bytes // row_bytes),
        seed=seed,
    )
    device = torch.device(device)
    buffer = DeviceBuffer(rows, buffers, device) if device.type == "cuda" else Buffer(rows, buffers)
    return ShuffledChunks(buffers, buffer), buffers.quality
