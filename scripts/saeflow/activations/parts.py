"""Which rows of a store one of several jobs writes, and which batches of the model give them.

Both lie on grids that do not know how many jobs there are: a part owns whole chunks of the store, and a forward pass
takes the same rows whoever runs it. So the chunks, their order and bytes, and with them every shuffle, are the same for
any number of parts; only the folders that the chunks lie in differ.
"""

import math
from collections.abc import Iterator


def rows_of(part: int, n_parts: int, n_rows: int, chunk_rows: int) -> range:
    """Rows that a part holds: whole chunks, as even as they can be; none if there are more parts than chunks.

    Raises:
        ValueError: no such part.
    """
    if not 0 <= part < n_parts:
        raise ValueError(f"part: {part} of {n_parts}, counted from 0")
    n_chunks = math.ceil(n_rows / chunk_rows)
    first, last = (n_chunks * i // n_parts * chunk_rows for i in (part, part + 1))
    return range(min(first, n_rows), min(last, n_rows))


def batches_of(rows: range, n_rows: int, batch_size: int) -> Iterator[tuple[range, slice]]:
    """Batches of the model that hold some of the rows.

    A batch across the border of two parts is run by both, whole, because a matrix product may round a row otherwise in
    other company.

    Yields:
        rows of a batch, and which of them, counted in the batch, are among `rows`.
    """
    for start in range(rows.start // batch_size * batch_size, rows.stop, batch_size):
        batch = range(start, min(start + batch_size, n_rows))
        yield batch, slice(max(rows.start, start) - start, min(rows.stop, batch.stop) - start)
