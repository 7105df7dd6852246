"""The site says what the tables say: its data files, the overview, the longest path of a run."""

import base64
import json

import numpy as np
import pandas as pd
import pytest
from site_tables import (
    IMAGES,
    classifiers,
    geometry_tables,
    image_features,
    injection_tables,
    inversion_tables,
    jobs,
    saes,
    text_features,
)

from saeflow.publish.site import data, features, inversion, pages, run


def test_data_come_back_as_they_were_and_cannot_end_their_script(tmp_path):
    content = {"text": 'a </script> "b" \u2028', "numbers": np.array([1.23456789, np.nan]), 3: (True, None)}
    data.write(tmp_path / "x.js", "a/key", content)
    text = (tmp_path / "x.js").read_text()
    assert text.startswith('saeflow.put("a/key",')
    assert "</script" not in text
    assert text.count("\n") == 1
    assert data.read(tmp_path / "x.js") == {"text": content["text"], "numbers": [1.2346, None], "3": [True, None]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site") / "features"
    saes = [image_features("topk", 150), image_features("relu", 70, seed=1), text_features(70)]
    features.write(saes, folder, IMAGES)
    return folder


def test_the_index_has_the_numbers_of_the_table(folder):
    listed = data.read(folder / "index.js")
    assert [(sae["name"], sae["n"]) for sae in listed["saes"]] == [
        ("ConvNet-full-s0/last.pre/topk-s0", 150),
        ("ConvNet-full-s0/last.pre/relu-s0", 70),
        ("words/model.layers.0/topk", 70),
    ]
    table = image_features("relu", 70, seed=1).table
    index = data.read(folder / listed["saes"][1]["name"] / "index.js")
    columns = {"density": "test_activation_rate", "max": "max_active", "score": "auroc"}
    for ours, theirs in columns.items():
        np.testing.assert_allclose(np.array(index[ours], float), table[theirs], rtol=5e-4)
    assert index["says"] == table["hypothesis"].tolist()
    assert np.flatnonzero(index["dead"]).tolist() == [5]


def test_a_page_has_its_feature_and_the_images_that_it_shows(folder):
    sae = image_features("topk", 150)
    chunk = data.read(folder / sae.name / f"{149 // features.CHUNK}.js")
    page = chunk["features"][149 % features.CHUNK]
    assert page["says"] == sae.table.hypothesis[149]
    np.testing.assert_allclose(page["facts"][chunk["facts"].index("auroc")], sae.table.auroc[149], rtol=5e-4)
    images = data.read(folder / "images" / "0.js")
    np.testing.assert_allclose(page["addition"], sae.arrays["addition"][149], rtol=5e-4)
    for image, _ in page["top"]:
        packed, label = images[str(image)]
        pixels = np.frombuffer(base64.b64decode(packed), np.uint8)
        np.testing.assert_allclose(pixels / 255, IMAGES.images[image].ravel(), atol=0.5 / 255 + 1e-6)
        assert label == IMAGES.labels[image]
    pattern = sae.arrays["pattern_haufe"][149]
    drawn = np.frombuffer(base64.b64decode(page["patterns"]["haufe"]), np.int8) / 127
    np.testing.assert_allclose(drawn, pattern / np.abs(pattern).max(), atol=0.5 / 127 + 1e-6)


def test_a_dead_feature_has_a_page_without_examples(folder):
    chunk = data.read(folder / "ConvNet-full-s0/last.pre/topk-s0" / "0.js")
    page = chunk["features"][5]
    assert page["dead"]
    assert page["top"] == []
    assert page["facts"][chunk["facts"].index("auroc")] is None
    assert chunk["n_test"] == 360


def test_a_feature_of_text_shows_what_concept_tests_and_inversion_found(folder):
    pages = data.read(folder / text_features(70).name / "0.js")["features"]
    assert pages[2]["concepts"] == [["questions", 1, 0.9, 0.2]]
    assert "concepts" not in pages[3]
    tables = inversion_tables()
    for i in set(tables["texts"]["feature"]):
        own = tables["texts"][(tables["texts"]["feature"] == i) & (tables["texts"]["method"] != "soft")]
        ratios = [ratio for _, _, ratio, *_ in pages[i].get("found", [])]
        assert ratios == sorted(own["ratio"].dropna(), reverse=True)
    row = tables["explanations"].iloc[0]
    assert pages[row["feature"]]["explanation"][0] == row["explanation"]


def test_a_feature_of_text_is_told_by_the_tokens_that_carry_it_and_shown_in_its_contexts(folder):
    sae = text_features(70)
    index = data.read(folder / sae.name / "index.js")
    np.testing.assert_allclose(index["density"], sae.table.density, rtol=5e-4)
    assert index["says"][5] == "fires on no text"
    chunk = data.read(folder / sae.name / "1.js")
    page = chunk["features"][69 - features.CHUNK]
    assert chunk["spaced"]
    assert page["says"] == index["says"][69]
    own = sae.contexts[sae.contexts.feature == 69]
    assert [one["tokens"] for one in page["top"]] == [list(tokens) for tokens in own.tokens]
    for shown, values in zip(page["top"], own.activations, strict=True):
        np.testing.assert_allclose(shown["values"], values, rtol=5e-4)
    carried: dict[str, float] = {}
    for tokens, values in zip(own.tokens, own.activations, strict=True):
        for token, value in zip(tokens, values, strict=True):
            carried[token] = carried.get(token, 0) + value
    assert page["says"].startswith(f"on {max(carried, key=carried.get)!r}")
    assert page["says"].endswith("; raises ' cat', ' dog'")
    assert data.read(folder / sae.name / "0.js")["features"][5]["top"] == []


CONFIG = {
    "study": "made_up",
    "seed": 0,
    "dataset": {"name": "digits"},
    "classifiers": {"architectures": ["SimpleNN", "ConvNet"], "seeds": [0]},
    "activations": {"hook_points": ["last.pre"]},
    "saes": {"variants": {"topk": {}}, "seeds": [0]},
    "injection": {"concept": 4, "lookalike": 5, "methods": ["references", "fragment_distillation"]},
}
CONFIG["injection"] |= {"target": "target", "source": "source"}
CONFIG["classifiers"]["roles"] = {"target": {"classes": [0, 1, 2, 3]}, "source": {"classes": [2, 3, 4, 5]}}
TABLES = {
    "classifiers": classifiers(),
    "saes": saes(),
    "features_summary": pd.DataFrame({"latents": [220]}),
}


def test_the_overview_has_the_numbers_of_the_tables():
    seen = pages.overview(pages.Study(CONFIG, TABLES, injection=injection_tables()))
    assert seen["facts"] == {
        "networks": 2,
        "mean test accuracy": "95.0 %",
        "sparse autoencoders": 3,
        "features analysed": "220",
        "injection methods": 2,
    }
    of_saes, of_injection, beside = seen["headlines"]
    topk = [
        "topk",
        "2",
        "9.00 (8.00 to 10.00)",
        "0.850 (0.800 to 0.900)",
        "-0.20 (-0.30 to -0.10)",
        "5.0 (0.0 to 10.0)",
    ]
    assert of_saes.rows[0] == topk
    assert len(of_injection.rows) == 1  # references are no headline
    assert [row[3:] for row in beside.rows] == [["80.0", "90.0", "not reproduced"]]
    assert of_injection.rows[0][4:] == ["80.0 (70.0 to 85.0)", "60.0", "7.0", "98.0", "20.0", "160"]


def test_the_injection_page_has_the_answers_and_images_of_each_variant():
    tables = injection_tables()
    shown = pages.injection(pages.Study(CONFIG, TABLES, injection=tables, images=IMAGES))
    assert set(shown["confusion"]) == set(shown["examples"]) == {1}  # its row of the summary
    assert shown["confusion"][1] == tables["confusion"][["label", "before", "after", "n"]].to_numpy().tolist()
    assert shown["examples"][1] == {"won": [[4, 1.0], [14, 0.75]], "missed": [[24, 0.0]], "taken": [[35, 0.25]]}
    assert set(shown["images"]) == {4, 14, 24, 35}
    packed, label = shown["images"][35]
    pixels = np.frombuffer(base64.b64decode(packed), np.uint8)
    np.testing.assert_allclose(pixels / 255, IMAGES.images[35].ravel(), atol=0.5 / 255 + 1e-6)
    assert label == 5


def test_no_headline_of_injection_loses_the_own_classes():
    tables = injection_tables()
    spoiled = tables["summary"].assign(preservation=0.6)
    seen = pages.overview(pages.Study(CONFIG, TABLES, injection=tables | {"summary": spoiled}))
    assert seen["headlines"][1].rows == []


def test_the_overview_holds_methods_against_the_goals_of_their_task():
    config = CONFIG | {"dataset": {"name": "mnist"}}
    seen = pages.overview(pages.Study(config, TABLES, injection=injection_tables()))
    (aims,) = [part for part in seen["headlines"] if part.title == "Goals"]
    # Transfer 80 of 92, worst pair 60 of 80, excess 20 of 40, specificity 7 of at most 4: at the penultimate layer.
    assert aims.rows[0][2:] == ["missed", "20.0 pp of worst transfer"] or aims.rows[0][3].startswith("20.0 pp of ")
    assert len(aims.rows) == 2  # no row without synthetic inputs


def test_the_overview_says_what_inversion_and_geometry_came_to():
    study = pages.Study(
        CONFIG | {"language": {"models": {"words": {}}}},
        {},
        inversion={"words/model.layers.0/topk": inversion_tables()},
        geometry={"words": geometry_tables()},
    )
    inverted, geometry = pages.overview(study)["headlines"]
    assert inverted.rows == [["words/model.layers.0/topk", "2", "0.50", "1.20", "1.10", "0.85", "0.85"]]
    assert geometry.rows == [
        ["words", "model", "1 of 1", "the hierarchy is there"],
        ["words", "shuffled rows", "0 of 1", "not shown"],
    ]


def test_the_geometry_page_has_the_tables_of_each_model_and_one_view_of_its_points():
    tables = geometry_tables()
    seen = pages.Study(CONFIG, {}, geometry={"words": tables})
    assert "geometry.html" in seen.pages
    shown = pages.geometry(seen)["words"]
    assert len(shown["points"]) == (tables["phase1_points"].view == "polytope").sum()
    for name in ("verdicts", "arms", "comparisons", "interventions"):
        pd.testing.assert_frame_equal(shown[name], tables[pages.GEOMETRY_TABLES[name]])
    short = pages.geometry(pages.Study(CONFIG, {}, geometry={"words": {k: tables[k] for k in list(tables)[:2]}}))
    assert set(short["words"]) == {"verdicts", "points"}


def test_the_inversion_page_has_the_features_that_are_on_the_map_and_what_was_found_for_them():
    tables = inversion_tables()
    shown = inversion.shown(tables, "activity")
    assert shown["map"]["feature"].tolist() == [1, 2, 3]
    assert {"x", "y", "cluster", "role"} <= set(shown["map"])
    assert shown["texts"]["ratio"].tolist() == tables["texts"]["ratio"].tolist()
    assert shown["explanations"]["explanation"].tolist() == ["fires on 'a'", "fires on 'b'"]
    assert set(inversion.shown({"selection": tables["selection"]}, "activity")) == {"map"}


def test_the_overview_of_a_study_of_language_models_alone_has_theirs():
    rows = {"model": ["words"] * 2, "hook_point": ["model.layers.0"] * 2, "variant": ["topk"] * 2}
    rows |= {
        "l0": [8.0, 10.0],
        "explained_variance": [0.9, 0.8],
        "ce_recovered_zero": [0.9, 0.98],
        "dead_share": [0, 0],
    }
    tables = {"saes": pd.DataFrame(rows), "features_summary": pd.DataFrame({"features": [512]})}
    seen = pages.overview(pages.Study(CONFIG | {"language": {"models": {"words": {}}}}, {}, language=tables))
    assert seen["lead"] == "Sparse autoencoders of the language models words."
    assert seen["facts"] == {"of language models": 2, "their features": "512"}
    (row,) = seen["headlines"][0].rows
    assert row[:5] == ["words", "model.layers.0", "topk", "2", "9.00 (8.00 to 10.00)"]
    assert row[6] == "94.0 (90.0 to 98.0)"


def test_a_study_has_the_pages_of_what_it_did(tmp_path):
    (tmp_path / "plotly.min.js").write_text("")
    pages.write(pages.Study(CONFIG, {"classifiers": classifiers()}), tmp_path / "site", tmp_path / "plotly.min.js")
    written = {path.name for path in (tmp_path / "site").iterdir()}
    assert written == {"index.html", "run.html", "assets"}
    assert 'href="features.html"' not in (tmp_path / "site/index.html").read_text()


def test_pages_are_the_same_bytes_each_time(tmp_path):
    (tmp_path / "plotly.min.js").write_text("")
    for name in ("a", "b"):
        study = pages.Study(CONFIG, TABLES, injection=injection_tables(), images=IMAGES)
        pages.write(study, tmp_path / name, tmp_path / "plotly.min.js")
    first, second = (
        {
            path.relative_to(tmp_path / name): path.read_bytes()
            for path in (tmp_path / name).rglob("*")
            if path.is_file()
        }
        for name in ("a", "b")
    )
    assert first == second


def test_the_longest_path_is_that_of_the_slowest_chain():
    assert [(job["name"], job["until"]) for job in run.longest_path(jobs())] == [("a", 1.0), ("c", 4.0), ("d", 7.0)]
    assert run.longest_path([]) == []


def test_ten_times_as_much_costs_ten_times_what_is_above_the_start_of_a_job():
    # CPU seconds 1, 2.5, 2, 1 of which 1 is the start; the path takes 1, 3 and 3 s.
    assert run.tenfold(jobs()) == {"start": 1.0, "cpu_seconds": 1 + 16 + 11 + 1, "path_seconds": 1 + 21 + 21}
    assert run.tenfold([]) == {"start": 0.0, "cpu_seconds": 0, "path_seconds": 0}


def test_a_job_whose_input_was_rebuilt_after_it_is_behind_that_input():
    draw, make = run.Job("draw", "d", 1.0, 1.0, 90, (1,), 2.0), run.Job("make", "a", 2.0, 1.0, 100, (), 0.0)
    assert [job["name"] for job in run.longest_path([draw, make])] == ["a", "d"]


def test_rules_are_counted_and_joined():
    rows = {row["name"]: row for row in run.by_rule(jobs())}
    assert rows["make"] == {"name": "make", "jobs": 2, "cpu_seconds": 3.5, "longest_seconds": 3.0, "memory_mib": 120}
    assert run.edges(jobs()) == [("make", "draw"), ("make", "train"), ("train", "draw")]


def test_jobs_are_read_from_what_snakemake_keeps(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results, metadata = tmp_path / "results/s", tmp_path / "metadata"
    (results / "benchmarks").mkdir(parents=True)
    metadata.mkdir()
    (results / "data.npz").write_bytes(bytes(2_000_000))
    (results / "benchmarks/make.jsonl").write_text('{"cpu_time": 1.5, "max_rss": "NA"}\n')

    def keep(output, rule, inputs, log, start, end):
        known = {"rule": rule, "input": inputs, "log": [log], "starttime": start, "endtime": end, "incomplete": False}
        (metadata / base64.b64encode(output.encode()).decode()).write_text(json.dumps(known))

    keep("results/s/data.npz", "make", ["scripts/a.py"], "results/s/logs/make.log", 0, 2)
    keep("results/s/model", "train", ["results/s/data.npz"], "results/s/logs/train/x.log", 2, 7)
    (results / "logs/train").mkdir(parents=True)
    (results / "benchmarks/train").mkdir()
    (results / "benchmarks/train/x.jsonl").write_text('{"cpu_time": 1.0, "max_rss": 90}\n')
    (results / "logs/train/x.log").write_text('INFO saeflow.record: ran {"cpu_seconds": 4.5}\n')
    keep("results/other/model", "train", [], "results/other/logs/train.log", 0, 1)
    first, second = run.read_jobs(results.relative_to(tmp_path), metadata)
    assert (first.rule, first.seconds, first.cpu_seconds, first.memory_mib) == ("make", 2, 1.5, 0)
    assert (second.name, second.reads, second.input_mb) == ("train/x", [0], 2.0)
    assert (second.cpu_seconds, second.memory_mib) == (4.5, 90)  # a job counts its own to the end
