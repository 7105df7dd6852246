"""Features of text: counted, ranked, shown in their contexts and by their logits, as a dense reference says."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from random_saes import random_sae

from saeflow.activations import ActivationStore
from saeflow.config.language import LanguageFeatures
from saeflow.datasets.inputs.texts import Texts
from saeflow.features import coactivation, dashboards, firing, logit_lens
from saeflow.features.code_file import CodeFile
from saeflow.features.text_contexts import windows
from saeflow.sae.codes import Codes

N, D_SAE = 200, 12


def dense(seed: int = 0, n: int = N, d_sae: int = D_SAE, share: float = 0.2) -> torch.Tensor:
    """Random latents, of which latent 3 never fires; some activations are equal."""
    generator = torch.Generator().manual_seed(seed)
    z = (torch.rand(n, d_sae, generator=generator) * 8).round() / 4
    z[torch.rand(n, d_sae, generator=generator) > share] = 0
    z[:, 3] = 0
    return z


def filed(folder, z: torch.Tensor, block: int) -> CodeFile:
    file = CodeFile(folder, z.shape[1])
    for part in z.split(block):
        file.append(Codes.from_dense(part))
    return file.close()


@pytest.mark.parametrize("block", [1, 7, 500])
def test_codes_on_disk_are_read_as_they_were_written(tmp_path, block):
    z = dense()
    file = filed(tmp_path, z, block)
    for rows in (1, 13, 400):
        blocks = list(file.blocks(rows))
        assert [first for first, _ in blocks] == list(range(0, N, rows))
        assert torch.equal(torch.cat([codes.dense() for _, codes in blocks]), z)
    generator = np.random.default_rng(0)
    rows, latents = generator.integers(N, size=300), generator.integers(D_SAE, size=300)
    assert np.array_equal(file.values_at(rows, latents), z.numpy()[rows, latents])


def test_codes_of_rows_on_which_nothing_fires_can_be_kept(tmp_path):
    file = filed(tmp_path, torch.zeros(5, 4), 2)
    assert torch.equal(next(file.blocks(9))[1].dense(), torch.zeros(5, 4))
    assert file.values_at(np.array([0, 4]), np.array([1, 2])).tolist() == [0, 0]


@pytest.mark.parametrize("block", [3, 64, 500])
def test_statistics_of_a_stream_are_those_of_the_whole(block):
    z = dense()
    found = firing.FiringStatistics(D_SAE)
    for part in z.split(block):
        found.update(Codes.from_dense(part))
    fires = z > 0
    assert torch.equal(found.counts, fires.sum(0))
    assert torch.equal(found.density, fires.double().mean(0))
    assert torch.equal(found.maxima, z.max(0).values)
    torch.testing.assert_close(found.means, z.double().sum(0) / fires.sum(0).clamp(min=1))
    histograms = firing.Histograms(found.maxima, 5)
    for part in z.split(block):
        histograms.update(Codes.from_dense(part))
    assert torch.equal(histograms.counts.sum(1), found.counts)
    for latent in range(D_SAE):
        values, edges = z[:, latent][fires[:, latent]].numpy(), histograms.edges[latent].numpy()
        if latent != 3:
            assert np.array_equal(histograms.counts[latent].numpy(), np.histogram(values, 5, (0, values.max()))[0])
        assert edges[-1] == found.maxima[latent]
        assert edges[0] == 0
    assert histograms.counts[3].sum() == 0


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 6), st.integers(0, 10**6), st.sampled_from([1, 40, 1 << 18]))
def test_top_contexts_are_those_of_a_sort_of_everything(block, k, seed, sorted_at):
    firing._SORTED = sorted_at
    z = dense(seed, n=90)
    contexts = np.repeat(np.arange(30), 3)
    top = firing.TopContexts(D_SAE, k)
    first = 0
    for part in z.split(block):
        top.update(Codes.from_dense(part), first, contexts[first : first + len(part)])
        first += len(part)
    top.close()
    for latent in range(D_SAE):
        best = {}
        for row in sorted(range(90), key=lambda row: (-z[row, latent], row)):
            if z[row, latent] > 0:
                best.setdefault(contexts[row], row)
        own = top.latents == latent
        assert top.rows[own].tolist() == list(best.values())[:k]
        assert top.activations[own].tolist() == [float(z[row, latent]) for row in top.rows[own]]
        assert top.ranks[own].tolist() == list(range(own.sum()))


@pytest.mark.parametrize("memory_mb", [1, 256])
def test_neighbours_are_those_of_the_dense_counts(tmp_path, memory_mb, monkeypatch):
    # A stripe of few latents: what a small memory gives a large SAE.
    monkeypatch.setattr(coactivation, "_BYTES", 24 if memory_mb > 1 else (1 << 20) // (5 * D_SAE))
    z = dense()
    fires = (z > 0).double()
    together = fires.T @ fires
    either = fires.sum(0)[:, None] + fires.sum(0)[None, :] - together
    jaccard = (together / either.clamp(min=1)).fill_diagonal_(0).numpy().astype(np.float32)
    found, similarity = coactivation.neighbours(filed(tmp_path, z, 50), (z > 0).sum(0).numpy(), 4, memory_mb)
    for latent in range(D_SAE):
        order = [i for i in np.argsort(-jaccard[latent], kind="stable")[:4] if jaccard[latent, i] > 0]
        assert [i for i in found[latent] if i >= 0] == order
        np.testing.assert_allclose(similarity[latent][: len(order)], jaccard[latent, order])
    assert (found[3] == -1).all()


def text_store(tmp_path=None) -> ActivationStore:
    """Three documents in contexts of up to 7 tokens; a token's id is its number."""
    rows = [(0, p, 0 if p < 7 else 1, 100 + p) for p in range(9)]
    rows += [(1, p, 1 if p < 4 else 2, 200 + p) for p in range(10)]
    rows += [(2, p, 3, 300 + p) for p in range(3)]
    x = torch.randn(len(rows), 4, generator=torch.Generator().manual_seed(0))
    return ActivationStore.from_array(x, torch.tensor(rows), source_columns=Texts.columns)


def test_windows_end_where_their_document_or_context_ends(tmp_path):
    store = text_store()
    z = torch.arange(1.0, 23)[:, None] * torch.tensor([1.0, 0.0, 2.0])
    peaks, latents = np.array([0, 5, 8, 10, 21]), np.array([0, 2, 0, 1, 2])
    found = windows(store, filed(tmp_path, z, 5), peaks, latents, before=3, after=2)
    offsets, *columns = found.flat()
    ids, activations = ([part.tolist() for part in np.split(column, offsets[1:-1])] for column in columns)
    assert list(ids) == [
        [100, 101, 102],
        [102, 103, 104, 105, 106],
        [107, 108],
        [200, 201, 202, 203],
        [300, 301, 302],
    ]
    assert [window[peak] for window, peak in zip(ids, found.peak, strict=True)] == [100, 105, 108, 201, 302]
    assert found.start.tolist() == [0, 2, 7, 0, 0]
    assert found.document.tolist() == [0, 0, 0, 1, 2]
    assert activations[1] == [2.0 * (row + 1) for row in (2, 3, 4, 5, 6)]
    assert activations[3] == [0, 0, 0, 0]


def test_a_window_ends_where_a_special_token_stood_in_the_text(tmp_path):
    rows = torch.tensor([[0, position, 0, 100 + position] for position in (0, 1, 2, 4, 5, 6, 8)])
    store = ActivationStore.from_array(torch.ones(7, 4), rows, source_columns=Texts.columns)
    z = torch.arange(1.0, 8)[:, None]
    peaks = np.array([1, 4, 6])
    found = windows(store, filed(tmp_path, z, 7), peaks, np.zeros(3, int), before=4, after=4)
    offsets, ids, _ = found.flat()
    assert [part.tolist() for part in np.split(ids, offsets[1:-1])] == [[100, 101, 102], [104, 105, 106], [108]]
    assert found.start.tolist() == [0, 4, 8]
    assert found.peak.tolist() == [1, 1, 0]


def test_the_tokens_of_a_direction_are_those_whose_logits_it_moves_most():
    generator = torch.Generator().manual_seed(1)
    rows, directions = (torch.randn(n, 16, generator=generator) for n in (20, 4))
    logits = directions @ rows.T
    order = logits.argsort(1, descending=True)
    top, values, bottom, lowest = logit_lens.extremes(directions, rows, 3)
    assert top.tolist() == order[:, :3].tolist()
    assert bottom.tolist() == order.flip(1)[:, :3].tolist()
    centred = logits - logits.mean(1, keepdim=True)
    torch.testing.assert_close(values, centred.gather(1, order[:, :3]))
    torch.testing.assert_close(lowest, centred.gather(1, order.flip(1)[:, :3]))


@pytest.mark.parametrize("with_lens", [True, False])
def test_the_tables_of_an_sae_have_what_is_promised(tmp_path, with_lens):
    store, sae = text_store(), random_sae("topk", 4, 10, dtype=torch.float32)
    readout = dashboards.Readout(
        torch.randn(30, 4, generator=torch.Generator().manual_seed(3)) if with_lens else None,
        lambda ids: [f"t{i}" for i in ids],
    )
    spec = LanguageFeatures(top_contexts=3, tokens_before=2, tokens_after=1, bins=4, logits=5, neighbours=3)
    paths = {"features": tmp_path / "f.parquet", "contexts": tmp_path / "c.parquet"}
    numbers = dashboards.analyze(sae, store, readout, spec, **paths, scratch=tmp_path)
    z = sae.encode(store.rows(slice(None)))
    assert numbers["n_tokens"] == len(store)
    assert numbers["l0"] == pytest.approx(float((z > 0).sum(1).double().mean()))
    features, contexts = (pd.read_parquet(path) for path in paths.values())
    assert parquet.read_schema(paths["features"]).equals(dashboards.FEATURES)
    assert parquet.read_schema(paths["contexts"]).equals(dashboards.CONTEXTS)
    assert features["feature"].tolist() == list(range(10))
    np.testing.assert_allclose(features["density"], (z > 0).double().mean(0))
    assert (features["dead"] == (features["density"] == 0)).all()
    assert numbers["dead_share"] == features["dead"].mean()
    assert all(len(edges) == 5 for edges in features["bin_edges"])
    assert [sum(h) for h in features["histogram"]] == (z > 0).sum(0).tolist()
    assert all(len(tokens) == (5 if with_lens else 0) for tokens in features["top_tokens"])
    np.testing.assert_allclose(features["decoder_norm"], sae.W_dec.norm(dim=1), rtol=1e-6)
    assert contexts[["feature", "rank"]].apply(tuple, axis=1).is_monotonic_increasing
    for _, row in contexts.iterrows():
        assert len(row["tokens"]) == len(row["token_ids"]) == len(row["activations"])
        assert row["activations"][row["position"]] == row["activation"] == max(row["activations"])
        assert list(row["tokens"]) == [f"t{i}" for i in row["token_ids"]]
        # Ids say which document and place they are from.
        assert row["token_ids"][0] == 100 * (row["document"] + 1) + row["context_start"]
    assert not list(tmp_path.glob("tmp*"))


def test_the_same_sae_gives_the_same_bytes(tmp_path):
    store, sae = text_store(), random_sae("jumprelu", 4, 10, dtype=torch.float32)
    readout = dashboards.Readout(torch.eye(4), lambda ids: [str(i) for i in ids])
    made = []
    for name in "ab":
        paths = {kind: tmp_path / f"{name}-{kind}" for kind in ("features", "contexts")}
        dashboards.analyze(sae, store, readout, LanguageFeatures(), **paths)
        made.append([path.read_bytes() for path in paths.values()])
    assert made[0] == made[1]


def test_a_single_latent_has_no_neighbour(tmp_path):
    found, similarity = coactivation.neighbours(filed(tmp_path, torch.ones(4, 1), 2), np.array([4]), 3, 1)
    assert found.shape == similarity.shape == (1, 0)
