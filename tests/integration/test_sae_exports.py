"""What is exported for sparsify and dictionary_learning loads in these libraries and reconstructs as our SAEs do.

Each library lives in an environment of its own, made from its lock when it is first needed.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from random_saes import random_sae
from safetensors.torch import load_file, save_file

from saeflow.publish import sae_exports
from saeflow.sae.calibration import adjust_threshold

D_IN, D_SAE, N = 24, 96, 300
TOLERANCE = 1e-6  # of the largest value: float32 resolves 1.2e-7
ROOT = Path(__file__).parents[2]
ENVIRONMENTS = {"sparsify": "eai-sparsify", "dictionary_learning": "dictionary-learning"}


def activations():
    return torch.randn(N, D_IN, generator=torch.Generator().manual_seed(9))


def saes():
    found = {
        name: random_sae(name, D_IN, D_SAE, dtype=torch.float32) for name in ("topk", "standard", "gated", "jumprelu")
    }
    # BatchTopK as it is saved: one threshold for all latents.
    found["batchtopk"] = adjust_threshold(random_sae("standard", D_IN, D_SAE, 1, torch.float32), activations(), 12.0)
    mean = torch.linspace(-2, 2, D_IN)
    return found | {f"{name}_normalized": sae.fold_normalization(mean, 0.7) for name, sae in found.items()}


SAES = saes()
FOR = {
    "sparsify": [name for name in SAES if name.startswith(("topk", "standard"))],
    "dictionary_learning": list(SAES),
}
CASES = [(library, name) for library, names in FOR.items() for name in names]


@pytest.fixture(scope="session")
def exchange(tmp_path_factory):
    """Folder with exports; reconstructions by a library are added when they are first asked for."""
    folder = tmp_path_factory.mktemp("exports")
    save_file({"x": activations()}, folder / "x.safetensors")
    for name, sae in SAES.items():
        if name in FOR["sparsify"]:
            sae_exports.write_sparsify(sae, folder / "sparsify" / name)
        sae_exports.write_dictionary_learning(
            sae, folder / "dictionary_learning" / name, model="tiny", module="model.layers.1", layer=1
        )
    return folder


def reconstructed(folder, library):
    output = folder / f"{library}.safetensors"
    if not output.is_file():
        command = [sys.executable, ROOT / "benchmarks" / "environments.py", "create", ENVIRONMENTS[library]]
        made = subprocess.run(command, capture_output=True, text=True)
        if made.returncode:
            pytest.skip(f"{library} cannot be installed here: {made.stderr.strip().splitlines()[-1]}")
        # Where triton is installed without a GPU, sparsify asks for this.
        environment = os.environ | {"SPARSIFY_DISABLE_TRITON": "1"}
        side = [made.stdout.strip(), ROOT / "tests/integration/sae_exports_side.py", library, folder]
        done = subprocess.run(side, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
    return load_file(output)


@pytest.mark.parametrize(("library", "name"), CASES)
def test_a_library_reconstructs_what_we_reconstruct(exchange, library, name):
    theirs, ours = reconstructed(exchange, library)[name], SAES[name](activations())
    torch.testing.assert_close(theirs, ours, rtol=0, atol=TOLERANCE * float(ours.abs().max()))


@pytest.mark.parametrize(("library", "name"), CASES)
def test_our_reading_of_the_files_is_the_librarys(exchange, library, name):
    folder = exchange / library / name
    read = {"sparsify": sae_exports.read_sparsify, "dictionary_learning": sae_exports.read_dictionary}[library]
    config = json.loads((folder / ("cfg.json" if library == "sparsify" else "config.json")).read_text())
    theirs, ours = reconstructed(exchange, library)[name], read(folder, config)(activations())
    torch.testing.assert_close(theirs, ours, rtol=0, atol=TOLERANCE * float(ours.abs().max()))
