"""What TensorBoard and Weights & Biases make of the curves of a training: both real, without a network."""

import json
import subprocess
import sys
from pathlib import Path

import extra_packages
import pytest

ROOT = Path(__file__).parents[2]
TRAINING = """
import sys
from pathlib import Path
import torch
from saeflow import tracking
from saeflow.activations import ActivationStore
from saeflow.config.saes import SAEs, TopK, Training
from saeflow.sae import fitting
variant = TopK(architecture="topk", d_sae=32, k=4)
saes = SAEs(variants={"topk": variant}, seeds=(0, 1), training=Training(
    steps=40, batch_size=64, warmup_steps=5, sparsity_warmup_steps=5))
store = ActivationStore.from_array(torch.randn(500, 8, generator=torch.Generator().manual_seed(0)))
with tracking.followed(Path(sys.argv[1])):
    curves = {key.seed: result.curves for key, result in fitting.fit([store], saes, seed=0)}
import json
print(json.dumps(curves))
"""
READING = """
import json, sys
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
runs = EventMultiplexer().AddRunsFromDirectory(sys.argv[1])
runs.Reload()
found = {run: {tag: [[e.step, e.value] for e in runs.Scalars(run, tag)] for tag in tags["scalars"]}
         for run, tags in runs.Runs().items()}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    return extra_packages.environment(
        extra_packages.install("tracking", tmp_path_factory.mktemp("extra")), without="WANDB_"
    )


def followed_by(tracker: str, folder: Path, environment: dict[str, str]) -> dict[str, dict[str, list[float]]]:
    """Curves of a training, by seed, that a tracker has followed."""
    command = [sys.executable, "-c", TRAINING, folder]
    done = subprocess.run(
        command, env=environment | {"SAEFLOW_TRACKERS": tracker}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_tensorboard_reads_the_curves(environment, tmp_path):
    command = [sys.executable, ROOT / "benchmarks" / "environments.py", "create", "tensorboard"]
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"TensorBoard cannot be installed here: {made.stderr.strip().splitlines()[-1]}")
    curves = followed_by("tensorboard", tmp_path, environment)
    read = subprocess.run([made.stdout.strip(), "-c", READING, tmp_path], capture_output=True, text=True, check=True)
    found = json.loads(read.stdout.splitlines()[-1])
    assert set(found) == {"topk-s0, store 0", "topk-s1, store 0"}
    for seed, expected in curves.items():
        for name in ("loss", "l0", "explained_variance", "dead_share"):
            points = found[f"topk-s{seed}, store 0"][name]
            assert [step for step, _ in points] == expected["step"]
            assert [value for _, value in points] == pytest.approx(expected[name], rel=1e-6)


def test_weights_and_biases_keeps_a_run_for_each_training_offline(environment, tmp_path):
    followed_by("wandb", tmp_path, environment)
    files = sorted(tmp_path.rglob("run-*.wandb"))
    assert len(files) == 2
    assert all(b"explained_variance" in file.read_bytes() for file in files)
