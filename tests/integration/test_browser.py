"""The site in a real browser, opened from disk: every page without a complaint, the explorer used, features found."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from site_tables import (
    IMAGES,
    classifiers,
    geometry_tables,
    image_features,
    injection_tables,
    inversion_tables,
    run_data,
    saes,
    text_features,
)

from saeflow.publish.site import data, features, pages

ROOT = Path(__file__).parents[2]
N = 12_000
"""Features of each of two SAEs: more than a page could hold as rows."""
M = 200
"""Features of each of two SAEs of language models."""
OF_IMAGES, *OF_TEXT = (
    *("ConvNet-full-s0/last.pre/relu-s0/11999", "words/model.layers.0/topk/199"),
    "words/model.layers.0/whole/2",  # what concept tests and inversion looked at
)


@pytest.fixture(scope="module")
def playwright() -> str:
    """Interpreter of the environment with the browser's driver."""
    if not shutil.which("chromium"):
        pytest.skip("no chromium here; as root: sh tests/integration/setup/chromium.sh")
    command = [sys.executable, ROOT / "benchmarks" / "environments.py", "create", "playwright"]
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"playwright cannot be installed here: {made.stderr.strip().splitlines()[-1]}")
    return made.stdout.strip()


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A site of made-up tables, as large as a real one."""
    folder = tmp_path_factory.mktemp("results") / "site"
    config = {
        "study": "made_up",
        "seed": 0,
        "dataset": {"name": "digits"},
        "classifiers": {
            "architectures": ["SimpleNN", "ConvNet"],
            "seeds": [0],
            "roles": {"target": {"classes": [0, 1, 2, 3]}, "source": {"classes": [2, 3, 4, 5]}},
        },
        "activations": {"hook_points": ["last.pre"]},
        "saes": {"variants": {"topk": {}, "relu": {}}, "seeds": [0]},
        "injection": {
            "concept": 4,
            "lookalike": 5,
            "methods": ["references", "fragment_distillation"],
            "target": "target",
            "source": "source",
        },
        "geometry": {"hierarchical": {"k": 1}},
        "inversion": {"clustering": {"by": "activity"}, "pipeline": {"optimize": True}},
    }
    tables = {"classifiers": classifiers(), "saes": saes()}
    tables["features_summary"] = pd.DataFrame({"latents": [2 * N]})
    import plotly

    plotly_js = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
    sections = {"injection": injection_tables(), "images": IMAGES, "geometry": {"words": geometry_tables()}}
    sections["inversion"] = {"words/model.layers.0/topk": inversion_tables()}
    pages.write(pages.Study(config, tables, **sections), folder, plotly_js)
    shown = [*(image_features(v, N) for v in ("topk", "relu")), text_features(M), text_features(M, whole_words=True)]
    features.write(shown, folder / "features", IMAGES)
    data.write(folder / "run_data.js", "run", run_data())
    return folder


@pytest.fixture(scope="module")
def seen(playwright, site) -> dict:
    out = site.parent / "seen.json"
    side = ROOT / "tests/integration/site_side.py"
    done = subprocess.run([playwright, side, site, out, OF_IMAGES, *OF_TEXT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


def test_every_page_loads_from_disk_without_a_complaint_and_fits_phones(seen):
    looked_at = {name: page for name, page in seen.items() if name not in ("explorer", "printed")}
    assert len(looked_at) == 9 * 2 * 2
    for name, page in looked_at.items():
        assert page["complaints"] == [], name
        assert page["overflow"] <= 0, name
        assert page["axe"] == [], name


def test_a_dark_page_is_printed_light_and_dark_again_behind_it(seen):
    assert seen["printed"] == {"paper": "rgb(255, 255, 255)", "screen": "rgb(20, 22, 26)"}


def test_a_deep_link_opens_its_feature(seen):
    for address in (OF_IMAGES, *OF_TEXT):
        sae, _, feature = address.rpartition("/")
        assert seen[f"feature.html#{address} wide light"]["title"] == f"Feature {feature} of {sae}"


def test_the_explorer_holds_all_features_and_draws_few(seen):
    explorer = seen["explorer"]
    assert explorer["status"] == f"{2 * N + 2 * M - 4:,} features"  # one of each SAE is dead
    assert explorer["rows_drawn"] < 100
    assert explorer["last_row"] == str(2 * N + 2 * M - 4 + 1)


def test_the_explorer_sorts_by_keyboard_and_searches(seen, site):
    explorer = seen["explorer"]
    index = data.read(site / "features/ConvNet-full-s0/last.pre/topk-s0/index.js")
    alive = [density for density, dead in zip(index["density"], index["dead"], strict=True) if not dead]
    assert explorer["sorted"] == "descending"
    assert float(explorer["densest"]) == pytest.approx(max(alive), rel=1e-2)
    assert float(explorer["sparsest"]) == pytest.approx(min(alive), rel=1e-2)
    assert explorer["found"] == "2 features"
    assert explorer["opened"] == "Feature 7 of ConvNet-full-s0/last.pre/topk-s0"
