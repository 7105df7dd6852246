"""SAEs saved by saeflow load in sae_lens and give the same numbers there, and the other way round.

sae_lens lives in an environment of its own, made from tests/envs/sae-lens.lock when it is first needed.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from random_saes import random_sae
from safetensors.torch import load_file, save_file

from saeflow.sae.calibration import adjust_threshold
from saeflow.sae.formats import load, save
from saeflow.sae.metrics import evaluate

D_IN, D_SAE, N = 48, 192, 400
TOLERANCE = 1e-6  # of the largest value in the tensor: float32 resolves 1.2e-7
HALF_TOLERANCE = 5e-3  # sae_lens computes in float16, which resolves 9.8e-4
METADATA = {"model_name": "FFN", "hook_name": "last.pre", "seed": 3}
ROOT = Path(__file__).parents[2]


def variants(x):
    """One SAE of every variant, in the form in which it is saved."""
    saes = {name: random_sae(name, D_IN, D_SAE, dtype=torch.float32) for name in ("topk", "jumprelu", "gated")}
    saes["relu"] = random_sae("standard", D_IN, D_SAE, dtype=torch.float32)
    saes["relu_threshold_adjusted"] = adjust_threshold(saes["relu"], x, 20.0)
    for seed, name in enumerate(("batchtopk", "matryoshka"), 1):
        # Both are trained elsewhere and saved with one threshold for all latents.
        saes[name] = adjust_threshold(random_sae("standard", D_IN, D_SAE, seed, torch.float32), x, 20.0)
    mean = torch.linspace(-3, 3, D_IN)
    return saes | {f"{name}_normalized": sae.fold_normalization(mean, 0.7) for name, sae in saes.items()}


OLDER = (
    "activation_fn",
    "activation_fn_str",
    "attention",
    "dtype_of_torch",
    "no_architecture",
    "normalize_false",
    "scaled_by_1",
    "topk",
)
NAMES = [
    name + suffix
    for name in ("relu", "relu_threshold_adjusted", "topk", "batchtopk", "matryoshka", "jumprelu", "gated")
    for suffix in ("", "_normalized")
]


@pytest.fixture(scope="session")
def sae_lens():
    """Interpreter of the environment with sae_lens."""
    command = [sys.executable, ROOT / "benchmarks" / "environments.py", "create", "sae-lens"]
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"sae_lens cannot be installed here: {made.stderr.strip().splitlines()[-1]}")
    return made.stdout.strip()


@pytest.fixture(scope="session")
def exchange(sae_lens, tmp_path_factory):
    """Folder in which both sides have saved their SAEs, and sae_lens its numbers."""
    folder = tmp_path_factory.mktemp("exchange")
    x = torch.randn(N, D_IN, generator=torch.Generator().manual_seed(9))
    save_file({"x": x}, folder / "x.safetensors")
    for name, sae in variants(x).items():
        save(sae, folder / "ours" / name, METADATA)
    done = subprocess.run(
        [sae_lens, ROOT / "tests/integration/sae_lens_side.py", folder], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def assert_equal_numbers(folder, side, name):
    sae, x = load(folder / side / name), load_file(folder / "x.safetensors")["x"]
    z = sae.encode(x)
    assert (z > 0).any()
    reference = load_file(folder / f"{side}.safetensors")
    for key, value in {"latents": z, "reconstruction": sae.decode(z)}.items():
        expected = reference[f"{name}/{key}"]
        assert torch.isfinite(value).all()
        torch.testing.assert_close(value, expected.float(), rtol=0, atol=TOLERANCE * float(expected.abs().max()))


@pytest.mark.parametrize("name", NAMES)
def test_sae_lens_encodes_and_decodes_what_we_save_as_we_do(exchange, name):
    assert_equal_numbers(exchange, "ours", name)


@pytest.mark.parametrize("name", NAMES)
def test_sae_lens_keeps_the_metadata(exchange, name):
    read = json.loads((exchange / "read.json").read_text())[name]
    assert read["metadata"].items() >= METADATA.items()
    saved_as = {"relu": "standard", "topk": "topk", "gated": "gated"}
    assert read["architecture"] == saved_as.get(name.removesuffix("_normalized"), "jumprelu")


@pytest.mark.parametrize("name", NAMES)
def test_our_explained_variance_is_that_of_sae_lens(exchange, name):
    x = load_file(exchange / "x.safetensors")["x"]
    ours = evaluate(load(exchange / "ours" / name), x)["explained_variance"]
    theirs = json.loads((exchange / "read.json").read_text())[name]["explained_variance"]
    assert ours == pytest.approx(theirs, rel=1e-5)  # it sums float32 squares


ARCHITECTURES = ("standard", "jumprelu", "gated", "topk")


@pytest.mark.parametrize(
    "name", [*ARCHITECTURES, *(f"{name}_float64" for name in ARCHITECTURES), "batchtopk", "folded"]
)
def test_we_encode_and_decode_what_sae_lens_saves_as_it_does(exchange, name):
    assert_equal_numbers(exchange, "theirs", name)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_we_compute_in_float32_what_sae_lens_does_in_half_precision(exchange, name):
    """Off by its rounding, and by the latents that it puts on the other side of a threshold."""
    sae, x = load(exchange / "theirs" / f"{name}_float16"), load_file(exchange / "x.safetensors")["x"]
    assert sae.dtype == torch.float32
    z, expected = sae.encode(x), load_file(exchange / "theirs.safetensors")[f"{name}_float16/latents"].float()
    both = (z > 0) & (expected > 0)
    assert both.sum() > 0.99 * max((z > 0).sum(), (expected > 0).sum())
    torch.testing.assert_close(z[both], expected[both], rtol=0, atol=HALF_TOLERANCE * float(expected.max()))


@pytest.mark.parametrize("name", OLDER)
def test_we_read_the_configurations_of_older_versions_as_sae_lens_does(exchange, name):
    assert_equal_numbers(exchange, "theirs", f"older_{name}")
