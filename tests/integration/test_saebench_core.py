"""SAEBench's core evaluation runs on our SAEs, and counts what we count.

It lives in an environment of its own, made from tests/envs/sae-bench.lock when it is first needed.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from random_saes import random_sae

from saeflow.sae import formats

ROOT = Path(__file__).parents[2]
ARCHITECTURES = ("topk", "standard", "jumprelu", "gated")


@pytest.fixture(scope="session")
def measured(tmp_path_factory):
    command = [sys.executable, ROOT / "benchmarks" / "environments.py", "create", "sae-bench"]
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"sae-bench cannot be installed here: {made.stderr.strip().splitlines()[-1]}")
    folder = tmp_path_factory.mktemp("bench")
    for architecture in ARCHITECTURES:
        formats.save(random_sae(architecture, 16, 48, dtype=torch.float32), folder / architecture)
    side = [made.stdout.strip(), ROOT / "tests/integration/sae_bench_side.py", folder]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "scripts"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(side, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "measured.json").read_text())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_core_evaluation_counts_what_we_count(measured, architecture):
    found = measured[architecture]
    assert found["theirs"]["l0"] == pytest.approx(found["l0"], rel=1e-5)
    # Its squared error is summed over 16 dimensions, and divided by the 96 tokens of a batch twice.
    assert found["theirs"]["mse"] == pytest.approx(found["mse"] * 16 / 96, rel=1e-4)
    assert {"ce_loss_score", "kl_div_score", "explained_variance", "l2_ratio"} <= found["theirs"].keys()
    assert found["n_latents"] == 48
    assert found["cfg"]["hook_name"] == "blocks.0.hook_resid_post"
