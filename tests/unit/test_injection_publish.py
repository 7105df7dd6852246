"""The injection study's tables say what the rows say; figures keep their bytes; the report leaves no method out."""

import json
from itertools import product
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import gather_injection
import write_injection_report
import write_older_names
from saeflow import reproduce
from saeflow.config.injection import METHODS
from saeflow.config.reading import parse
from saeflow.injection.knowledge import Knowledge, tier_name
from saeflow.publish import goals, injection_figures, injection_report, older_numbers, report, style
from saeflow.publish import injection_tables as tables

ARCHITECTURES = ("SimpleNN", "MegaNN", "ConvNet")
PAIRS = list(product(ARCHITECTURES, repeat=2))
TIERS = ("T0", "T1", "T1+", "T1+ & B", "T2", "T2 & B", "T2 & B & N")
SEEDS = (0, 1)
CONCEPT, LOOKALIKE = 4, 5
NAMES = ("measures", "summary", "pairs", "controls", "curve", "pareto", "sweeps", "stages", "confusion", "examples")
TASK = {"target_classes": (0, 1, 2, 3), "source_classes": (2, 3, 4, 5), "concept": CONCEPT, "lookalike": LOOKALIKE}
CFG = {
    "study": "made_up",
    "dataset": "mnist",
    "pairs": PAIRS,
    "injection": {"concept": CONCEPT, "lookalike": LOOKALIKE, "blind": None},
    "classifiers": {
        "architectures": ARCHITECTURES,
        "seeds": SEEDS,
        "roles": {"target": {"classes": TASK["target_classes"]}, "source": {"classes": TASK["source_classes"]}},
    },
}
FORGETFUL = ("cascade_transplant", "neural_aligner")
NOWHERE = "direct_weight_copy"  # as if it applied to no pair


def about() -> list[dict]:
    """Every method of the project: one with a sweep, one of references, some for equal architectures only."""
    contents = []
    for i, name in enumerate(METHODS):
        site = ("last.post", "first.post", "weights")[i % 3]
        variants = [("", TIERS[i % len(TIERS)])]
        if name == "dimension_scaling":
            variants = [(f"d_sae={d}", tier) for tier in ("T1+ & B", "T2 & B") for d in (64, 128)]
        if name == "references":
            variants = [("few_shot_5", "oracle"), ("target", "T0")]
        contents.append(
            {
                "method": name,
                "family": {"references": "reference", "doodle_regression": "new"}.get(name, "sae"),
                "text": f"s = {name}(h)\n\nA source of {name}, eq. {i}.",
                "variants": [{"variant": variant, "tier": tier, "site": site} for variant, tier in variants],
                "equal_architectures": i % 4 == 3,
            }
        )
    return contents


def rows_of(content: dict) -> tuple[list[dict], list[dict], list[dict]]:
    """Measures, curve and intervals of one method as its job writes them, of made-up numbers."""
    rng = np.random.default_rng(reproduce.child_seed(0, content["method"]))
    measures, curve, intervals = [], [], []
    pairs = [pair for pair in PAIRS if not content["equal_architectures"] or pair[0] == pair[1]]
    stages = {"4": (4,), "4, 5": (4, 5)} if content["method"] == "continual_injection" else {"": (4,)}
    for variant, control in product(content["variants"], ("", "untrained_target")):
        own = {"method": content["method"], "family": content["family"], **variant, "control": control}
        intervals += [own | {"metric": name, "mean": 0.5, "low": 0.4, "high": 0.6} for name in tables.OUTCOMES]
        for (source, target), (stage, concepts) in product(pairs, stages.items()):
            at = own | {"source": source, "target": target, "stage": stage}
            for concept, seed in product(concepts, SEEDS):
                values = {name: rng.uniform() for name in tables.MEASURED} | dict.fromkeys(tables.COST, 3)
                values["preservation"] = 0.9 if content["method"] in FORGETFUL else 0.98
                measures.append(at | {"concept": concept, "seed": seed, "shift": 0.0} | values)
            if not control:
                points = product(SEEDS, (0.0, 1.0))
                values = {name: rng.uniform() for name in tables.OUTCOMES}
                curve += [at | {"seed": seed, "gamma": gamma} | values for seed, gamma in points]
    return measures, curve, intervals


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Everything that the study's scripts make of the made-up rows, but for figures."""
    folder = tmp_path_factory.mktemp("injection")
    inputs = {kind: [] for kind in ("measures", "curves", "intervals", "confusions", "examples", "about")}
    for content in about():
        name = content["method"]
        for kind, rows in zip(("measures", "curves", "intervals"), rows_of(content), strict=True):
            inputs[kind].append(folder / f"{name}.{kind}.parquet")
            pd.DataFrame([] if name == NOWHERE else rows).to_parquet(inputs[kind][-1], index=False)
        for kind, row in (("confusions", {"before": 0, "after": 4, "n": 3}), ("examples", {"image": 7, "share": 0.5})):
            rows = [{"method": name, "label": 4} | row]
            inputs[kind].append(folder / f"{name}.{kind}.parquet")
            pd.DataFrame([] if name == NOWHERE else rows).to_parquet(inputs[kind][-1], index=False)
        inputs["about"].append(folder / f"{name}.json")
        reproduce.write_json(inputs["about"][-1], content)
    exact = [folder / f"{name}.parquet" for name in NAMES]
    gather_injection.main(**inputs, parquet=exact, csv=[folder / "summary.csv"], cfg=CFG)
    figures = [folder / f"{name}.svg" for name in injection_figures.FIGURES]
    pages = {"report": folder / "report.md", "older": folder / "EXPERIMENT_REPORT.md"}
    write_injection_report.main(tables=exact, figures=figures, about=inputs["about"], **pages, cfg=CFG)
    return folder


@pytest.fixture(scope="module")
def made(folder) -> dict[str, pd.DataFrame]:
    return {name: pd.read_parquet(folder / f"{name}.parquet") for name in NAMES}


def row_of(table: pd.DataFrame, method: str, variant: str = "") -> pd.Series:
    return table[(table["method"] == method) & (table["variant"] == variant)].iloc[0]


def test_every_tier_of_the_protocol_has_a_rung():
    every = [Knowledge(bits) for bits in range(2 ** len(Knowledge))]
    assert {tables.rung(tier_name(knowledge)) for knowledge in every} == set(tables.RUNGS)
    assert {tables.with_statistics(tier_name(knowledge)) for knowledge in every} == {True, False}
    assert (tables.rung("T1+ & B & N"), tables.with_statistics("T1+ & N")) == ("T1+", False)


def test_every_variant_has_one_row_in_the_order_of_tiers(made):
    summary = made["summary"]
    assert len(summary) == sum(len(content["variants"]) for content in about())
    ranks = [tables.tier_order(tier) for tier in summary["tier"]]
    assert ranks == sorted(ranks)
    assert row_of(summary, NOWHERE)["n_pairs"] == 0


def test_a_mean_is_over_pairs_and_its_deviation_over_seeds(made):
    rows = made["measures"].query("method == 'ridge_regression' and control == ''")
    per_seed = [rows.loc[rows["seed"] == seed, "transfer"].mean() for seed in SEEDS]
    found = row_of(made["summary"], "ridge_regression")
    assert found["transfer"] == pytest.approx(np.mean(per_seed))
    assert found["transfer_std"] == pytest.approx(np.std(per_seed, ddof=1))
    assert (found["n_pairs"], found["n_seeds"], found["transfer_low"]) == (9, 2, 0.4)


def test_the_worst_pair_and_the_excess_are_those_of_the_rows(made):
    rows = made["measures"].query("method == 'ridge_regression'")
    plain = rows[rows["control"] == ""].groupby(["source", "target"])["transfer"].mean()
    found = row_of(made["summary"], "ridge_regression")
    assert (found["worst_source"], found["worst_target"]) == plain.idxmin()
    assert (found["worst_transfer"], found["best_transfer"]) == pytest.approx((plain.min(), plain.max()))
    untrained = rows.loc[rows["control"] == "untrained_target", "transfer"].mean()
    assert found["excess"] == pytest.approx(plain.mean() - untrained)
    assert found["transfer_blind_source"] != found["transfer_blind_source"]  # a control that was not run


@pytest.mark.parametrize(
    ("transfer", "untrained", "reading"),
    [(0.9, 0.7, "distillation"), (0.9, 0.6, ""), (0.4, 0.4, ""), (0.5, 0.375, "distillation")],
)
def test_distillation_is_a_transfer_that_an_untrained_target_has_too(transfer, untrained, reading):
    content = about()[1]
    measures, _, intervals = map(pd.DataFrame, rows_of(content))
    measures["transfer"] = measures["control"].map({"": transfer, "untrained_target": untrained})
    table = tables.summary(measures, intervals, tables.variants([content]), CONCEPT)
    assert table["reading"].tolist() == [reading]


def test_a_method_of_steps_is_summarised_after_its_last(made):
    rows = made["measures"].query("method == 'continual_injection' and control == '' and concept == 4")
    last = rows.loc[rows["stage"] == "4, 5", "transfer"].mean()
    assert row_of(made["summary"], "continual_injection")["transfer"] == pytest.approx(last)
    steps = made["stages"]
    assert list(zip(steps["step"], steps["concept"], strict=True)) == [(0, 4), (1, 4), (1, 5)]
    assert steps["forgotten"].tolist() == pytest.approx([0, steps["transfer"][0] - steps["transfer"][1], 0])
    assert steps["specificity"].isna().tolist() == [False, False, True]


def test_a_sweep_is_sorted_by_its_number_and_kept_apart_by_tier(made):
    sweeps = made["sweeps"]
    assert sweeps["value"].tolist() == [64, 128] * 2
    assert set(sweeps["parameter"]) == {"d_sae"}
    assert sweeps.groupby("tier").size().tolist() == [2, 2]
    table = made["summary"].iloc[[0, 1]].assign(variant=["t_0_5", "t_0_25"], method="m", n_pairs=1, tier="T0", site="s")
    assert tables.sweeps(table)["value"].tolist() == [0.25, 0.5]


def test_the_front_is_what_brute_force_finds(made):
    rows = made["pareto"]
    assert set(rows["method"]) == set(METHODS) - {"references", NOWHERE}
    for i, a in rows.iterrows():
        rivals = [b for j, b in rows.iterrows() if j != i and b["keeps"] and b["penultimate"] == a["penultimate"]]
        beaten = any(b["transfer"] >= a["transfer"] and b["specificity"] <= a["specificity"] for b in rivals)
        assert a["keeps"] == (a["preservation"] >= tables.KEEPS)
        assert a["on_front"] == (a["keeps"] and not beaten)
    assert rows["on_front"].any()


def test_no_row_that_gives_up_the_own_classes_is_called_the_best(made):
    best = {row["method"] for row in injection_report.best(made["summary"])}
    assert best
    assert not best & set(FORGETFUL)


def test_pairs_stand_in_the_order_of_the_study(made):
    rows = made["pairs"].query("method == 'ridge_regression'")
    assert list(zip(rows["source"], rows["target"], strict=True)) == PAIRS


STATED = {"m": {"transfer": 0.5, "specificity": 0.04}}


@pytest.mark.parametrize(
    ("rows", "verdicts"),
    [
        ([("T1", 0.46, 0.08)], ["reproduced"]),
        ([("T1", 0.44, 0.08)], ["not reproduced"]),
        ([("T1", 0.90, 0.10)], ["not reproduced"]),
        ([("T1", 0.44, 0.0), ("T2", 0.9, 0.0)], ["needs a higher tier", "reproduced"]),
        ([("T1", 0.9, 0.0), ("T2", 0.1, 0.0)], ["reproduced", "not reproduced"]),
    ],
)
def test_a_verdict_follows_the_stated_rule(rows, verdicts):
    table = pd.DataFrame(rows, columns=["tier", "transfer", "specificity"]).assign(method="m", n_pairs=1)
    table = pd.concat([table, table.iloc[:1].assign(method="other")], ignore_index=True)
    judged = older_numbers.beside(table, STATED)
    assert judged["verdict"].tolist() == [*verdicts, ""]
    assert judged["older_transfer"].tolist()[:-1] == [0.5] * len(rows)
    assert judged[["transfer", "specificity"]].equals(table[["transfer", "specificity"]])


@pytest.mark.parametrize("other", [{"dataset": "fashion_mnist"}, {"concept": 5, "lookalike": 4}])
def test_another_task_has_no_older_numbers_and_no_goals(other):
    task = {"dataset": "mnist", **TASK}
    assert set(older_numbers.of_task(**task)) <= set(METHODS)
    assert len(goals.of_task(**task)) == 3
    assert older_numbers.of_task(**task | other) == {}
    assert goals.of_task(**task | other) == []


def test_a_summary_without_older_numbers_has_no_column_for_them(made):
    summary = made["summary"].drop(columns=[name for name in made["summary"] if name.startswith("older_")])
    assert list(older_numbers.beside(summary, {})) == list(summary)


def test_a_goal_is_met_or_missed_by_the_row_that_comes_closest():
    goal = {"text": "g", "tiers": ["T2"], "penultimate": True, "least": {"transfer": 0.9}, "most": {"specificity": 0.1}}
    columns = {
        "transfer": [0.99, 0.8, 0.95],
        "specificity": [0.0, 0.1, 0.3],
        "site": ["first.post", "last.pre", "last.pre"],
    }
    table = pd.DataFrame(columns).assign(tier="T2", n_pairs=1, method=["a", "b", "c"])
    (found,) = goals.closest(table, [goal])
    assert (found["row"]["method"], found["metric"]) == ("b", "transfer")
    assert found["shortfall"] == pytest.approx(0.1)
    assert goals.closest(table.assign(site="last.pre"), [goal])[0]["shortfall"] <= 0
    assert goals.closest(table.assign(tier="T1"), [goal]) == []


@pytest.mark.parametrize("name", injection_figures.FIGURES)
def test_a_figure_has_the_same_bytes_each_time(tmp_path, made, name):
    draw, table = injection_figures.FIGURES[name]
    for copy in ("a", "b"):
        figure = draw(made[table])
        style.save(figure, tmp_path / f"{copy}.svg")
        assert figure.axes[0].has_data()
        plt.close(figure)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


@pytest.mark.parametrize(
    ("value", "text"), [(0.12345, "12.3"), (-0.0001, "0.0"), (-0.05, "\N{MINUS SIGN}5.0"), (np.nan, "\N{EN DASH}")]
)
def test_a_share_is_shown_in_percent(value, text):
    assert injection_report.share(value) == text


def test_every_figure_has_a_caption():
    assert set(injection_report.CAPTIONS) == set(injection_figures.FIGURES)


def test_the_report_has_every_method_tier_equation_and_figure(folder, made):
    text = (folder / "report.md").read_text()
    for content in about():
        assert f"### {tables.plain(content['method'])}" in text
        assert content["text"] in text
    for tier in set(made["summary"]["tier"]) - {"oracle"}:
        assert f"### {tier}\n" in text
    for name in injection_figures.FIGURES:
        assert f"(figures/{name}.svg)" in text
    for row in made["summary"].query("n_pairs > 0").itertuples():
        assert f"{100 * row.transfer:.1f} ± {100 * row.transfer_std:.1f}" in text
    assert "direct weight copy: 0 of 9 pairs" in text
    assert "nan" not in text


def test_the_report_of_a_few_methods_leaves_out_what_they_have_not(made):
    few = {name: table[table["method"] == "ridge_regression"] for name, table in made.items()}
    few["summary"] = few["summary"].drop(columns="verdict")
    task = {name: list(value) if isinstance(value, tuple) else value for name, value in TASK.items()}
    numbers = {"n_pairs": 9, "seeds": SEEDS, "preservation": 0.985, "synthetic_images": 10, "bootstrap": 10}
    study = injection_report.Study(
        name="few", dataset="fashion_mnist", architectures=ARCHITECTURES, unseen=[6], **task, **numbers
    )
    text = injection_report.render(study, few, about()[1:2], ["pairs"])
    for title in ("Sweeps", "Several concepts", "earlier write-ups", "verdict", "Goals"):
        assert title not in text
    assert "Every method was run on every pair." in text


def test_the_older_names_hold_the_rows_of_their_method(tmp_path, folder, made):
    method1 = tmp_path / "method1_comprehensive_results.json"
    write_older_names.main(
        summary=folder / "summary.parquet",
        measures=folder / "measures.parquet",
        of_methods=[method1],
        master=tmp_path / "master.json",
        cfg={"names": {method1.stem: "precomputed_alignment"}},
    )
    content = json.loads(method1.read_text())
    rows = made["measures"].query("method == 'precomputed_alignment'")
    assert [row["transfer"] for row in content["measures"]] == rows["transfer"].tolist()
    assert content["summary"][0]["transfer_blind_source"] is None
    assert json.loads((tmp_path / "master.json").read_text())["methods"] == sorted(METHODS)


def test_the_study_report_links_to_the_injection_report(tmp_path, made):
    page = tmp_path / "report.html"
    networks = pd.DataFrame({"architecture": ["A"], "role": ["target"], "test_accuracy": [0.9]})
    pictures = {"classifiers": report.picture(tmp_path / "figures" / "classifiers.svg", page, "caption")}
    part = report.Injection("injection/report.md", injection_report.best(made["summary"]), pictures["classifiers"])
    study = parse(
        {
            "study": "s",
            "dataset": {"name": "mnist", "data_dir": "d", "calibration_share": 0.1},
            "classifiers": {"roles": CFG["classifiers"]["roles"]},
            "saes": {},
            "injection": CFG["injection"],
        }
    )
    html = report.render(study.model_dump(mode="json"), {"classifiers": networks}, pictures, [], part)
    assert 'href="injection/report.md"' in html
    assert html.count("<tr><td>") == len(part.best) > 0
    assert "Sparse autoencoders" not in html
