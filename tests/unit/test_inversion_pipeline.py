"""The stages one after another on a small model, the figures and the page of the map, and the section of a study."""

import json
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import tiny_models
import torch
from random_saes import random_sae

from saeflow.activations import ActivationStore
from saeflow.config.inversion import Inversion
from saeflow.config.language import Hook
from saeflow.config.reading import parse
from saeflow.config.sections import ConfigError
from saeflow.datasets.contexts import pack
from saeflow.datasets.inputs.texts import Texts, batches_of
from saeflow.inversion import pipeline
from saeflow.inversion.explanations import readings
from saeflow.models import language
from saeflow.models.capture import capture
from saeflow.models.networks.transformers import Transformers
from saeflow.publish import inversion_figures, inversion_map
from saeflow.sae import formats

HOOK = Hook(module="model.layers.0")
SPEC = Inversion.model_validate(
    {
        "data": {"prompt_tokens": 6, "entropy": [0, 1], "density": [0, 1]},
        "clustering": {"features": 4, "seeds": 2, "components": 4},
        "optimization": {
            "length": 4,
            "evaluations": 150,
            "width": 12,
            "restarts": 2,
            "soft_steps": 3,
            "population": 4,
        },
        "explanation": {"window": 6, "examples": 10, "quantiles": 2},
    }
)


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inversion")
    model_folder = tiny_models.save("llama", folder / "model")
    model = language.load(model_folder, tiny_models.SETTINGS, "cpu")
    tokens = language.load_tokenizer(model_folder, tiny_models.SETTINGS)
    words, rng = tiny_models.WORDS.split(), np.random.default_rng(0)
    for split in ("train", "held_out"):
        texts = ((i, " ".join(rng.choice(words, 30))) for i in range(60))
        parts = list(pack(texts, tokens.encode, start=tokens.start, context_size=16, n_tokens=None))
        with ActivationStore.create(folder / split, d=16, chunk_rows=256, source_columns=Texts.columns) as writer:
            capture(Transformers(model, {HOOK.name: HOOK}), batches_of(parts), {(0, HOOK.name): writer})
    formats.save(random_sae("topk", d_in=16, d_sae=24, dtype=torch.float32), folder / "sae")
    experiment = pipeline.load_experiment_models(
        model=model_folder,
        settings=tiny_models.SETTINGS,
        hook=HOOK,
        sae=folder / "sae",
        stores={split: folder / split / "manifest.json" for split in ("train", "held_out")},
        spec=SPEC,
        seed=0,
    )
    activity, latents = pipeline.collect_and_filter_data(experiment, cache=folder / "cache")
    clusters = pipeline.run_clustering(experiment, activity, latents)
    cards = pipeline.analyze_clusters(experiment, activity, latents, clusters)
    chosen = pipeline.select_features(experiment, activity, latents, clusters)
    found = pipeline.optimize_feature(experiment, activity, [one.feature for one in chosen])
    explained = pipeline.generate_explanations(experiment, activity, chosen, cards, found.texts)
    pipeline.visualize_results(latents, clusters["activity"], chosen, {}, folder / "map.html")
    return experiment, activity, chosen, found, explained, folder


def test_every_method_reports_every_feature_within_the_budget(stages):
    _, _, chosen, found, *_ = stages
    texts = found.texts
    assert set(texts["method"]) == {"dataset", "random", "soft", "soft_projected", "gcg", "epo"}
    assert (texts.groupby("method")["feature"].nunique() == len(chosen)).all()
    searched = texts[texts["method"].isin(["random", "gcg", "epo"])]
    # EPO starts from GCG's texts here, and what these cost is added.
    budget = SPEC.optimization.evaluations * searched["method"].map({"random": 1, "gcg": 1, "epo": 2})
    assert (searched["evaluations"] <= budget).all()
    assert searched["survived"].all()
    by_method = texts.pivot(index="feature", columns="method", values="score")
    assert (by_method["gcg"] >= by_method["dataset"] - 1e-4).all()
    assert (by_method["soft"] >= by_method["dataset"] - 1e-4).all()


def test_epo_that_starts_from_gcg_is_nowhere_below_it(stages):
    fronts = stages[3].fronts
    assert fronts["gcg"].all()
    for _, own in fronts.groupby("feature"):
        assert (np.diff(own["score"]) > 0).all()
        assert (np.diff(own["cross_entropy"]) > 0).all()


def test_the_reported_score_is_that_of_the_pasted_text(stages):
    experiment, _, _, found, *_ = stages
    row = found.texts[found.texts["method"] == "gcg"].iloc[0]
    ids = [experiment.tokens.start, *experiment.tokens.encode([row["text"]])[0]]
    state = experiment.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[1][0, -1]
    score = experiment.sae.preactivations(state)[row["feature"]]
    assert float(score) == pytest.approx(row["score"], rel=1e-4)


def test_epo_that_starts_from_gcgs_texts_has_spent_what_gcg_did(stages):
    *_, found, _, _ = stages
    spent = found.texts.pivot(index="feature", columns="method", values="evaluations")
    assert (spent["epo"] > spent["gcg"]).all()
    curves = found.curves[found.curves["method"] == "epo"].groupby("feature")["evaluations"].min()
    assert (curves >= spent["gcg"]).all()


def test_a_feature_of_which_no_text_of_the_data_can_be_typed_has_no_row_of_it(stages, monkeypatch):
    experiment, activity, chosen, *_ = stages
    windows_of = readings.best_windows
    monkeypatch.setattr(readings, "best_windows", lambda read, i, *sizes: windows_of(read, i, *sizes) if i else [])
    found = pipeline.optimize_feature(experiment, activity, [one.feature for one in chosen])
    features = found.texts.groupby("method")["feature"].agg(set)
    assert features["dataset"] == features["gcg"] - {chosen[0].feature}
    for name in ("ratios", "fronts", "heatmaps"):
        plt.close(inversion_figures.draw(name, {"texts": found.texts, "fronts": found.fronts}))


def test_explanations_have_evidence_and_scores(stages):
    *_, chosen, found, explained, _ = stages
    assert explained["feature"].tolist() == [one.feature for one in chosen]
    for row in explained.itertuples():
        evidence = json.loads(row.evidence)
        assert row.explanation.startswith(f"Feature {row.feature} ")
        assert max(map(len, evidence["places"])) <= 100
        assert evidence["found"] in set(found.texts.loc[found.texts["feature"] == row.feature, "text"])
        assert row.n_positives > 0


def test_tables_and_the_page_are_the_same_again(stages, tmp_path):
    experiment, activity, chosen, found, _, folder = stages
    again = pipeline.optimize_feature(experiment, activity, [one.feature for one in chosen])
    for name in ("texts", "fronts", "curves"):
        getattr(found, name).to_parquet(tmp_path / "a.parquet")
        getattr(again, name).to_parquet(tmp_path / "b.parquet")
        assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes(), name
    page = (folder / "map.html").read_text()
    assert page.count("<circle") > len(chosen)
    assert len(re.findall(r'r="7"', page)) == len(chosen)


def test_figures_are_drawn_from_tables(stages):
    *_, found, explained, _ = stages
    tables = {"texts": found.texts, "fronts": found.fronts, "curves": found.curves, "explanations": explained}
    for name in ("ratios", "curves", "fronts", "heatmaps", "explanations"):
        figure = inversion_figures.draw(name, tables)
        assert figure.axes
        plt.close(figure)
    with pytest.raises(ValueError, match="called 'lost'"):
        inversion_figures.draw("lost", tables)


def test_text_on_the_map_is_text(tmp_path):
    table = pd.DataFrame({"feature": [3, 4], "activity_x": [0.0, 1.0], "activity_y": [0.0, 1.0]})
    table["cluster_activity"], table["role"] = [0, -1], ["extreme", None]
    told = pd.DataFrame({"feature": [3], "explanation": ["<script>alert(1)</script>"]})
    inversion_map.write(tmp_path / "a.html", table, "activity", told)
    page = (tmp_path / "a.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "feature 4, no cluster" in page


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"optimization": {"position": 9, "length": 4}}, "position: 9 is outside a text of 4 tokens"),
        ({"optimization": {"length": 4, "restarts": 2, "evaluations": 26}}, "evaluations: 26 may all go into"),
        ({"data": {"entropy": [0.9, 0.2]}}, "entropy: 0.9 must be below 0.2"),
        ({"optimisation": {}}, "did you mean 'optimization'?"),
        ({"explanation": {"endpoint": {"url": "https://a.example/v1", "model": "m", "api_key": "x"}}}, "a secret"),
        (
            {"explanation": {"endpoint": {"url": "https://a.example/v1", "model": "m", "key_variable": "HF_TOKEN"}}},
            "explanation.endpoint.key_variable: no file says which key is sent; drop it, and set SAEFLOW_ENDPOINTS=",
        ),
        ({"explanation": {"endpoint": {"url": "https://me@a.example/v1", "model": "m"}}}, "endpoint.url"),
    ],
)
def test_a_section_that_cannot_be_is_refused(section, said):
    language = {
        "models": {"m": {"embedded": {}, "hook_points": ["model.layers.0"]}},
        "saes": {"variants": {"a": {"architecture": "topk", "d_sae": 8, "k": 2}}},
    }
    with pytest.raises(ConfigError, match=re.escape(said)):
        parse({"study": "s", "language": language, "inversion": section})
    assert parse({"study": "s", "language": language, "inversion": {}}).inversion


def test_inversion_without_saes_of_text_is_refused():
    with pytest.raises(ConfigError, match=r"inversion: is of SAEs of language models"):
        parse({"study": "s", "inversion": {}})


def test_a_heat_map_shows_of_a_long_text_the_tokens_up_to_the_highest():
    tokens, profile = [f"t{i}" for i in range(40)], np.zeros(40)
    profile[30] = 2.0
    texts = pd.DataFrame([{"method": "gcg", "feature": 3, "tokens": tokens, "profile": profile}])
    figure = inversion_figures.heatmaps(texts)
    assert [text.get_text() for text in figure.axes[0].texts] == tokens[15:31]
