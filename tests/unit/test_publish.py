"""Tables summarise what the jobs measured, figures keep their bytes, the report shows every table and picture."""

import re

import numpy as np
import pandas as pd
import pytest
from PIL import ImageFont

from saeflow.publish import canvas, figures, report, style, tables


def saes() -> pd.DataFrame:
    rows = [
        {"architecture": a, "role": "full", "hook_point": "last.pre", "variant": v, "seed": s, "sae_seed": 0}
        for a in ("SimpleNN", "ConvNet")
        for v in ("topk", "relu")
        for s in (0, 1, 2)
    ]
    table = pd.DataFrame(rows)
    for i, metric in enumerate(tables.SAE_METRICS):
        table[metric] = np.linspace(i, i + 1, len(table))
    return table


def latents() -> pd.DataFrame:
    table = pd.DataFrame({"latent": range(4), "dead": [False, False, False, True]})
    table = table.assign(architecture="SimpleNN", role="full", hook_point="last.pre", variant="topk", seed=0)
    table["auroc"], table["auroc_null_p95"], table["auroc_null"] = [0.9, 0.8, 0.5, np.nan], 0.6, 0.5
    table["test_activation_rate"], table["r_ablation_addition"] = [0.5, 0.1, 0.01, 0.0], 0.8
    return table.assign(**{f"keep_r2_{name}": [0.1, 0.2, 0.3, np.nan] for name in tables.PATTERNS})


def test_a_summary_has_mean_sample_deviation_and_number():
    summary = tables.summarize(saes(), tables.SAE_GROUP, ["l0"])
    first = saes()["l0"][:3]
    assert list(summary["variant"]) == ["topk", "relu"] * 2
    assert summary.loc[0, "l0"] == pytest.approx(first.mean())
    assert summary.loc[0, "l0_std"] == pytest.approx(np.std(first, ddof=1))
    assert set(summary["n"]) == {3}


def test_dead_latents_count_as_dead_and_in_no_median():
    summary = tables.summarize_features(latents()).iloc[0]
    assert (summary["latents"], summary["dead"]) == (4, 0.25)
    assert summary["hypothesis_above_null"] == pytest.approx(2 / 3)
    assert summary["auroc"] == pytest.approx(0.8)
    assert summary["keep_r2_haufe"] == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("value", "spread", "text"), [(0.97341, 0.0021, "0.9734"), (97.341, 0.21, "97.34"), (20.04, 1.3, "20.0")]
)
def test_a_mean_is_shown_to_two_digits_of_its_deviation(value, spread, text):
    assert report._fixed(value, spread) == text


def curves() -> pd.DataFrame:
    table = saes().merge(pd.DataFrame({"step": [0, 10]}), how="cross")
    return table.assign(explained_variance=0.9, l0=20.0)


def classifier_rows() -> pd.DataFrame:
    return pd.DataFrame({"architecture": ["A", "A", "B"], "role": "full", "test_accuracy": [0.9, 0.95, 0.97]})


TABLES = {"classifiers": classifier_rows, "saes": saes, "training": curves, "features": latents}


@pytest.mark.parametrize("name", figures.FIGURES)
def test_a_figure_has_the_same_bytes_each_time(tmp_path, name):
    draw, table = figures.FIGURES[name]
    for suffix in ("svg", "png"):
        for copy in ("a", "b"):
            style.save(draw(TABLES[table]()), tmp_path / f"{copy}.{suffix}")
        assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


def test_the_quality_of_a_single_variant_is_drawn():
    figure = figures.sae_quality(saes().query("variant == 'topk'"))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["topk"]


def test_every_figure_has_a_caption():
    assert set(report.CAPTIONS) == set(figures.FIGURES)


def test_the_report_shows_every_figure_gallery_and_number(tmp_path):
    page = tmp_path / "report.html"
    pictures = {name: report.picture(tmp_path / "figures" / f"{name}.svg", page, "caption") for name in report.CAPTIONS}
    gallery = report.picture(tmp_path / "features" / "g.png", page, "Features <b> & more")
    study = {
        "study": "s",
        "classifiers": {"architectures": ["SimpleNN"], "seeds": [0, 1, 2]},
        "dataset": {"name": "digits"},
        "activations": {"hook_points": ["last.pre"]},
        "saes": {"seeds": [0]},
    }
    frames = {
        "classifiers": classifier_rows(),
        "saes_summary": tables.summarize(saes(), tables.SAE_GROUP, tables.SAE_METRICS),
        "features_summary": tables.summarize_features(latents()),
    }
    html = report.render(study, frames, pictures, [gallery])
    assert set(re.findall(r'<img src="([^"]+)"', html)) == {p.path for p in pictures.values()} | {"features/g.png"}
    assert "Features &lt;b&gt; &amp; more" in html
    assert "94.0 %" in html
    assert html.count("<tr><td>") == 4 + 1


def test_text_on_cards_is_laid_out_without_the_libraries_of_the_machine():
    # Where libfribidi is there, Pillow would let Raqm do it, and the pixels would be others.
    assert canvas._font(12, False).layout_engine == ImageFont.Layout.BASIC
