"""A language study in small: a real SAE, run over embedded words, and its features as the workflow writes them."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from random_saes import random_sae

from saeflow.sae import formats
from saeflow.sae.architectures import SparseAutoencoder

SENTENCE = "the a dog cat bird sat ran flew on over mat tree blue red big small and then it was , . ? ! one two three"
WORDS = [*SENTENCE.split(), "four", "house", "door", "open", "shut", "été"]
VOCABULARY = ["<s>", *(f" {word}" if word[0].isalnum() else word for word in WORDS)]
D_IN, BINS, CONTEXTS = 16, 8, 6


def write_study(
    root: Path, name: str = "tales", model: str = "tiny", architecture: str = "topk", seed: int = 0
) -> Path:
    """Study folder with one SAE of 48 latents on `model.layers.1`, of which the last one is dead; its features."""
    hook, variant = "model.layers.1", f"{architecture}_3x"
    study = root / name
    place = Path(model) / hook / variant
    sae = _dead_last(random_sae(architecture, D_IN, 48, seed, torch.float32))
    formats.save(
        sae,
        study / "language" / "saes" / Path(f"{place}-s{seed}"),
        {
            "model_name": model,
            "hook_name": hook,
            "context_size": 12,
            "variant": {"name": variant, "architecture": architecture, "seed": seed},
        },
    )
    tokens, x = _activations(seed)
    z = sae.encode(torch.from_numpy(x).flatten(0, 1)).reshape(*tokens.shape, sae.d_sae).numpy()
    folder = study / "language" / "features" / place
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(_features(z, sae), schema=FEATURES), folder / "features.parquet")
    pq.write_table(pa.Table.from_pylist(_contexts(z, tokens), schema=CONTEXT), folder / "contexts.parquet")
    residual = x - sae(torch.from_numpy(x)).numpy()
    summary = {
        "study": name,
        "model": model,
        "model_revision": "0" * 40,
        "hook_point": hook,
        "variant": variant,
        "architecture": architecture,
        "d_in": D_IN,
        "d_sae": sae.d_sae,
        "l0": float((z > 0).sum(-1).mean()),
        "explained_variance": float(1 - (residual**2).sum() / ((x - x.mean((0, 1))) ** 2).sum()),
        "ce_clean": 2.0,
        "ce_sae": 2.2,
        "ce_zero": 4.0,
        "ce_mean": 3.5,
        "ce_recovered_zero": 0.9,
        "ce_recovered_mean": 1.3 / 1.5,
        "dead_share": float((z == 0).all((0, 1)).mean()),
        "n_tokens": tokens.size,
        "context_size": tokens.shape[1],
        "seed": seed,
        "config_digest": "ab" * 32,
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    return study


def _dead_last(sae: SparseAutoencoder) -> SparseAutoencoder:
    """The SAE with a last latent that never fires."""
    name = "b_gate" if hasattr(sae, "b_gate") else "b_enc"
    bias = getattr(sae, name).clone()
    bias[-1] = -1e6
    return sae.replace(**{name: bias})


def _activations(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [documents, 12] and an activation vector for each: its embedding and a little of the one before."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, len(VOCABULARY), (60, 12))
    tokens[:, 0] = 0
    embedding = rng.normal(size=(len(VOCABULARY), D_IN)).astype(np.float32)
    x = embedding[tokens]
    x[:, 1:] += 0.3 * x[:, :-1]
    return tokens, x


def _features(z: np.ndarray, sae: SparseAutoencoder) -> list[dict]:
    rng = np.random.default_rng(1)
    unembedding = rng.normal(size=(len(VOCABULARY), D_IN)).astype(np.float32)
    logits = sae.W_dec.numpy() @ (unembedding - unembedding.mean(0)).T
    flat = z.reshape(-1, z.shape[-1])
    fires = flat > 0
    both = fires.T.astype(int) @ fires.astype(int)
    rows = []
    for i, values in enumerate(flat.T):
        active = values[values > 0]
        counts, edges = np.histogram(active, BINS, (0, active.max() if len(active) else 1))
        union = both[i, i] + np.diag(both) - both[i]
        jaccard = np.where(np.arange(len(both)) == i, -1, both[i] / np.maximum(union, 1))
        near, order = np.argsort(-jaccard, kind="stable")[:5], np.argsort(-logits[i], kind="stable")
        rows.append(
            {
                "feature": i,
                "density": float(fires[:, i].mean()),
                "dead": not len(active),
                "mean_activation": float(active.mean()) if len(active) else 0.0,
                "max_activation": float(active.max()) if len(active) else 0.0,
                "histogram": counts.tolist(),
                "bin_edges": edges.tolist(),
                "top_tokens": [VOCABULARY[t] for t in order[:10]],
                "top_logits": logits[i][order[:10]].tolist(),
                "bottom_tokens": [VOCABULARY[t] for t in order[::-1][:10]],
                "bottom_logits": logits[i][order[::-1][:10]].tolist(),
                "neighbours": near.tolist(),
                "neighbour_coactivation": jaccard[near].tolist(),
                "decoder_norm": float(sae.W_dec[i].norm()),
            }
        )
    return rows


def _contexts(z: np.ndarray, tokens: np.ndarray) -> list[dict]:
    rows = []
    for i in range(z.shape[-1]):
        peaks = z[..., i].max(1)
        for rank, document in enumerate(d for d in np.argsort(-peaks, kind="stable")[:CONTEXTS] if peaks[d] > 0):
            rows.append(
                {
                    "feature": i,
                    "rank": rank,
                    "document": int(document),
                    "context_start": 0,
                    "position": int(z[document, :, i].argmax()),
                    "activation": float(peaks[document]),
                    "tokens": [VOCABULARY[t] for t in tokens[document]],
                    "token_ids": tokens[document].tolist(),
                    "activations": z[document, :, i].tolist(),
                }
            )
    return rows


def _schema(**types: pa.DataType) -> pa.Schema:
    return pa.schema(list(types.items()))


_STRINGS, _FLOATS = pa.list_(pa.string()), pa.list_(pa.float32())
FEATURES = _schema(
    feature=pa.int32(),
    density=pa.float64(),
    mean_activation=pa.float32(),
    max_activation=pa.float32(),
    dead=pa.bool_(),
    histogram=pa.list_(pa.int64()),
    bin_edges=_FLOATS,
    top_tokens=_STRINGS,
    top_logits=_FLOATS,
    bottom_tokens=_STRINGS,
    bottom_logits=_FLOATS,
    neighbours=pa.list_(pa.int32()),
    neighbour_coactivation=_FLOATS,
    decoder_norm=pa.float32(),
)
CONTEXT = _schema(
    feature=pa.int32(),
    rank=pa.int16(),
    document=pa.int64(),
    position=pa.int32(),
    context_start=pa.int32(),
    activation=pa.float32(),
    tokens=_STRINGS,
    token_ids=pa.list_(pa.int32()),
    activations=_FLOATS,
)
