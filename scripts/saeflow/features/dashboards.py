"""Everything that a feature of a language model is shown by, from one pass over an activation store.

The pass keeps sparse codes only, on disk; histograms, neighbours and windows are read from these. So memory depends on
the number of latents, not on the length of the text.
"""

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from pyarrow import parquet
from torch import Tensor

from saeflow.config.language import LanguageFeatures
from saeflow.features import coactivation, logit_lens
from saeflow.features.code_file import CodeFile
from saeflow.features.firing import FiringStatistics, Histograms, TopContexts
from saeflow.features.text_contexts import windows
from saeflow.sae.architectures import SparseAutoencoder

log = logging.getLogger(__name__)

_ROWS = 16384
_LATENTS = 256  # whose windows, or logits, are in memory at a time

FEATURES = pa.schema(
    [
        ("feature", pa.int32()),
        ("density", pa.float64()),
        ("mean_activation", pa.float32()),
        ("max_activation", pa.float32()),
        ("dead", pa.bool_()),
        ("histogram", pa.list_(pa.int64())),
        ("bin_edges", pa.list_(pa.float32())),
        ("top_tokens", pa.list_(pa.string())),
        ("top_logits", pa.list_(pa.float32())),
        ("bottom_tokens", pa.list_(pa.string())),
        ("bottom_logits", pa.list_(pa.float32())),
        ("neighbours", pa.list_(pa.int32())),
        ("neighbour_coactivation", pa.list_(pa.float32())),
        ("decoder_norm", pa.float32()),
    ]
)
"""A row per latent: density is the share of tokens on which it fires, mean_activation is over these; histogram counts
them in equal bins from 0 to max_activation; logits are the logit lens of the decoder row, centred over the vocabulary;
neighbours are by the Jaccard similarity of the sets of tokens on which latents fire."""

CONTEXTS = pa.schema(
    [
        ("feature", pa.int32()),
        ("rank", pa.int16()),
        ("document", pa.int64()),
        ("position", pa.int32()),
        ("context_start", pa.int32()),
        ("activation", pa.float32()),
        ("tokens", pa.list_(pa.string())),
        ("token_ids", pa.list_(pa.int32())),
        ("activations", pa.list_(pa.float32())),
    ]
)
"""A row per latent and rank: position is the peak's place among the tokens shown, context_start the place in the
document of the first of them."""


@dataclass(frozen=True)
class Readout:
    """How directions and token ids are shown.

    Arguments:
        rows: of `logit_lens.unembedding`; None where the hook point is not in the residual stream.
        strings: texts of token ids.
    """

    rows: Float[Tensor, "vocabulary d_in"] | None
    strings: Callable[[Sequence[int]], list[str]]


def analyze(
    sae: SparseAutoencoder,
    store: Any,
    readout: Readout,
    spec: LanguageFeatures,
    *,
    features: Path,
    contexts: Path,
    scratch: Path | None = None,
) -> dict[str, float]:
    """Write the tables of an SAE's features.

    Arguments:
        sae: on the device where it encodes.
        store: activations with the source columns of `saeflow.datasets.inputs.texts.Texts`, in the order of the
            text.
        readout: of the model.
        spec: what is kept.
        features, contexts: .parquet to write, with the columns FEATURES and CONTEXTS.
        scratch: folder for the codes, 8 bytes per active latent and token; the system's if not given.
    Returns:
        `n_tokens`, and `l0` and `dead_share` over them.
    """
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        codes, statistics, top = _encode(sae, store, spec.top_contexts, Path(folder))
        log.info("%d tokens encoded, L0 %.2f", codes.n_rows, codes.n_active / codes.n_rows)
        histograms = Histograms(statistics.maxima, spec.bins)
        for _, block in codes.blocks(_ROWS):
            histograms.update(block)
        counts = statistics.counts.numpy()
        near, similarity = coactivation.neighbours(codes, counts, spec.neighbours, spec.memory_mb)
        log.info("neighbours found")
        _write_contexts(contexts, store, codes, top, spec, readout)
    _write_features(features, sae, statistics, histograms, near, similarity, spec, readout)
    dead = float((statistics.counts == 0).double().mean())
    return {"n_tokens": codes.n_rows, "l0": codes.n_active / codes.n_rows, "dead_share": dead}


def _encode(sae: SparseAutoencoder, store: Any, k: int, folder: Path) -> tuple[CodeFile, FiringStatistics, TopContexts]:
    """The pass over the activations."""
    codes, statistics, top = CodeFile(folder, sae.d_sae), FiringStatistics(sae.d_sae), TopContexts(sae.d_sae, k)
    column, first = store.source_columns.index("context"), 0
    for x in store.batches(_ROWS, shuffle=None, epochs=1, device=sae.device):
        block = sae.encode_sparse(x, _ROWS // 4).to("cpu")
        codes.append(block)
        statistics.update(block)
        top.update(block, first, store.source(slice(first, first + len(x)))[:, column].numpy())
        first += len(x)
    return codes.close(), statistics, top.close()


def _write_contexts(
    path: Path, store: Any, codes: CodeFile, top: TopContexts, spec: LanguageFeatures, readout: Readout
) -> None:
    strings, ranks = _Strings(readout.strings), top.ranks
    with parquet.ParquetWriter(path, CONTEXTS, compression="zstd") as writer:
        for first in range(0, codes.d_sae, _LATENTS):
            span = slice(*np.searchsorted(top.latents, (first, first + _LATENTS)))
            if span.start == span.stop:
                continue
            latents, rows = top.latents[span], top.rows[span]
            found = windows(store, codes, rows, latents, before=spec.tokens_before, after=spec.tokens_after)
            offsets, ids, activations = found.flat()
            known, where = np.unique(ids, return_inverse=True)
            texts = pa.array(strings(known.tolist()), pa.string()).take(pa.array(where))
            lists = {"tokens": texts, "token_ids": ids, "activations": activations}
            columns = {
                "feature": latents,
                "rank": ranks[span],
                "document": found.document,
                "position": found.peak,
                "context_start": found.start,
                "activation": top.activations[span],
            }
            arrays = [
                pa.ListArray.from_arrays(
                    pa.array(offsets, pa.int32()), pa.array(lists[field.name], field.type.value_type)
                )
                if field.name in lists
                else pa.array(columns[field.name], field.type)
                for field in CONTEXTS
            ]
            writer.write_table(pa.table(arrays, CONTEXTS))


def _write_features(
    path: Path,
    sae: SparseAutoencoder,
    statistics: FiringStatistics,
    histograms: Histograms,
    near: np.ndarray,
    similarity: np.ndarray,
    spec: LanguageFeatures,
    readout: Readout,
) -> None:
    strings = _Strings(readout.strings)
    shared = {
        "feature": np.arange(sae.d_sae),
        "density": statistics.density.numpy(),
        "mean_activation": statistics.means.float().numpy(),
        "max_activation": statistics.maxima.numpy(),
        "dead": (statistics.counts == 0).numpy(),
        "decoder_norm": sae.W_dec.float().norm(dim=1).cpu().numpy(),
    }
    edges = histograms.edges
    with parquet.ParquetWriter(path, FEATURES, compression="zstd") as writer:
        for first in range(0, sae.d_sae, _LATENTS):
            part = slice(first, min(first + _LATENTS, sae.d_sae))
            columns = {name: values[part] for name, values in shared.items()}
            columns |= dict(_logits(sae.W_dec[part], readout.rows, spec.logits, strings))
            columns["histogram"] = histograms.counts[part].tolist()
            columns["bin_edges"] = edges[part].tolist()
            columns["neighbours"] = [row[row >= 0].tolist() for row in near[part]]
            columns["neighbour_coactivation"] = [
                values[row >= 0].tolist() for row, values in zip(near[part], similarity[part], strict=True)
            ]
            arrays = [pa.array(columns[field.name], field.type) for field in FEATURES]
            writer.write_table(pa.table(arrays, FEATURES))


def _logits(
    directions: Tensor, rows: Tensor | None, k: int, strings: "_Strings"
) -> Iterator[tuple[str, list[list[Any]]]]:
    """Columns of the logit lens; empty lists outside the residual stream."""
    found = logit_lens.extremes(directions, rows, k) if rows is not None else [torch.empty(len(directions), 0)] * 4
    for i, side in enumerate(("top", "bottom")):
        yield f"{side}_tokens", [strings(ids) for ids in found[2 * i].long().tolist()]
        yield f"{side}_logits", found[2 * i + 1].tolist()


class _Strings:
    """Texts of tokens, each asked for once."""

    def __init__(self, of: Callable[[Sequence[int]], list[str]]) -> None:
        self._of, self._known = of, {}

    def __call__(self, ids: Sequence[int]) -> list[str]:
        new = sorted(set(ids) - self._known.keys())
        self._known.update(zip(new, self._of(new) if new else [], strict=True))
        return [self._known[i] for i in ids]
