"""SAELens's directory format: round trip, equal bytes, clear errors."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from random_saes import random_sae
from safetensors.torch import load_file, save_file

import saeflow
from saeflow.reproduce import sha256_file
from saeflow.sae.architectures import ARCHITECTURES
from saeflow.sae.formats import CONFIG, WEIGHTS, FormatError, load, save

METADATA = {"model_name": "FFN", "hook_name": "last.pre", "study": {"seed": 0, "layers": [1, 2]}}


@pytest.fixture
def saved(tmp_path):
    """A saved TopK SAE."""
    save(random_sae("topk", dtype=torch.float32), tmp_path, METADATA)
    return tmp_path


def edit(path: Path, **changes):
    """Change keys of a JSON file; None takes a key out."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_round_trip_keeps_every_bit_and_the_metadata(tmp_path, name, dtype):
    sae = random_sae(name, dtype=dtype)
    save(sae, tmp_path / "sae", METADATA)
    again = load(tmp_path / "sae")
    assert type(again) is type(sae)
    assert again.metadata.items() >= METADATA.items()
    assert all(getattr(again, key) == getattr(sae, key) for key in sae.settings)
    for key in sae.shapes:
        torch.testing.assert_close(getattr(again, key), getattr(sae, key), rtol=0, atol=0)
    save(again, tmp_path / "again")
    for file in (CONFIG, WEIGHTS):
        assert sha256_file(tmp_path / "again" / file) == sha256_file(tmp_path / "sae" / file)


def test_weights_and_config_have_the_same_digest_under_another_hash_seed(tmp_path):
    script = (
        "import sys\n"
        "from random_saes import random_sae\n"
        "from saeflow.sae.formats import save\n"
        "metadata = {key: None for key in {'model_name', 'hook_name', 'dataset_path', 'context_size'}}\n"
        "save(random_sae('gated'), sys.argv[1], metadata)\n"
    )
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    path = os.pathsep.join([str(Path(saeflow.__file__).parents[1]), str(Path(__file__).parents[1])])
    environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", script, tmp_path / "other"], env=environment, check=True)
    metadata = dict.fromkeys({"model_name", "hook_name", "dataset_path", "context_size"})
    save(random_sae("gated"), tmp_path / "here", metadata)
    for file in (CONFIG, WEIGHTS):
        assert sha256_file(tmp_path / "other" / file) == sha256_file(tmp_path / "here" / file)


def test_config_has_what_sae_lens_needs_to_keep_the_metadata(saved):
    cfg = json.loads((saved / CONFIG).read_text())
    assert (cfg["architecture"], cfg["d_in"], cfg["d_sae"], cfg["dtype"], cfg["k"]) == ("topk", 6, 20, "float32", 5)
    assert int(cfg["metadata"]["sae_lens_version"].split(".")[0]) >= 6
    assert cfg["apply_b_dec_to_input"] is True
    assert cfg["rescale_acts_by_decoder_norm"] is False


def test_tensors_that_share_memory_are_saved(tmp_path):
    sae = random_sae("standard")
    save(sae.replace(W_dec=sae.W_enc.T), tmp_path)
    torch.testing.assert_close(load(tmp_path).W_dec, sae.W_enc.T)


def test_sae_lens_options_fold_into_the_weights(tmp_path):
    """References: SAELens 6.54, `SAE.process_sae_in`, `TopKSAE.encode`, `GatedSAE.encode`."""
    x = torch.randn(30, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for name in ARCHITECTURES:
        sae = random_sae(name)
        save(sae, tmp_path / name)
        edit(tmp_path / name / CONFIG, apply_b_dec_to_input=False)
        torch.testing.assert_close(load(tmp_path / name)(x), sae.decode(sae.encode(x + sae.b_dec)))

    norms = torch.arange(1, 21, dtype=torch.float64)
    sae = random_sae("topk")
    save(sae.replace(W_dec=sae.W_dec * norms[:, None]), tmp_path / "rescaled")
    edit(tmp_path / "rescaled" / CONFIG, rescale_acts_by_decoder_norm=True)
    hidden = (((x - sae.b_dec) @ sae.W_enc + sae.b_enc) * norms).relu()
    kept = hidden >= hidden.topk(sae.k).values[:, -1:]
    torch.testing.assert_close(load(tmp_path / "rescaled").encode(x), hidden * kept)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": None}, "cfg.json: key 'architecture' is missing"),
        ({"architecture": "temporal"}, "cfg.json: architecture is 'temporal', expected one of standard, topk"),
        ({"dtype": "int8"}, "cfg.json: dtype is 'int8', expected one of float32"),
        ({"d_sae": None}, "cfg.json: d_sae is 'missing', expected a positive integer"),
        ({"k": 2.5}, "cfg.json: k is 2.5, expected a positive integer"),
        ({"k": 21}, "cfg.json: TopK: k is 21, expected 1 to d_sae 20"),
        ({"d_in": 7}, "sae_weights.safetensors: W_enc has shape .6, 20., cfg.json says .d_in 7, d_sae 20."),
        ({"normalize_activations": "layer_norm"}, "cfg.json: normalize_activations is 'layer_norm', expected 'none'"),
        ({"reshape_activations": "hook_z"}, "cfg.json: reshape_activations is 'hook_z', expected 'none'"),
        ({"architecture": "gated"}, "sae_weights.safetensors: tensor 'b_gate' is missing; architecture 'gated' needs"),
    ],
)
def test_a_foreign_config_is_refused_by_file_and_key(saved, changes, message):
    edit(saved / CONFIG, **changes)
    with pytest.raises(FormatError, match=message):
        load(saved)


@pytest.mark.parametrize("file", [CONFIG, WEIGHTS])
def test_a_truncated_file_is_named(saved, file):
    content = (saved / file).read_bytes()
    for kept in (0, 5, len(content) // 2, len(content) - 3):
        (saved / file).write_bytes(content[:kept])
        with pytest.raises(FormatError, match=f"{file}: truncated or not"):
            load(saved)


def test_json_that_is_no_object_is_refused(saved):
    (saved / CONFIG).write_text("[1]")
    with pytest.raises(FormatError, match="holds a list, expected an object"):
        load(saved)


def test_a_foreign_tensor_is_named(saved):
    tensors = load_file(saved / WEIGHTS)
    save_file(tensors | {"scaling_factor": torch.ones(3)}, saved / WEIGHTS)
    with pytest.raises(FormatError, match="tensor 'scaling_factor' is foreign to architecture 'topk'"):
        load(saved)


@pytest.mark.parametrize("file", [CONFIG, WEIGHTS])
def test_a_missing_file_is_named(saved, file):
    (saved / file).unlink()
    with pytest.raises(FileNotFoundError, match=f"{file}: not there"):
        load(saved)


def test_weights_that_are_not_a_number_are_not_saved(tmp_path):
    sae = random_sae("standard")
    sae.W_dec[3, 2] = float("nan")
    with pytest.raises(ValueError, match="W_dec holds 1 values that are not a number"):
        save(sae, tmp_path)


def test_metadata_that_is_not_json_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"metadata.path is PosixPath\('x'\), expected a JSON value"):
        save(random_sae("standard"), tmp_path, {"path": Path("x")})
