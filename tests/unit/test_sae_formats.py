"""SAELens's directory format: round trip, equal bytes, clear errors."""

import json
import math
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
from saeflow.sae.calibration import adjust_threshold
from saeflow.sae.formats import CONFIG, WEIGHTS, FormatError, load, save
from saeflow.sae.metrics import evaluate

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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_round_trip_keeps_every_bit_and_the_metadata(tmp_path, name, dtype):
    sae = random_sae(name, dtype=dtype)
    save(sae, tmp_path / "sae", METADATA)
    again = load(tmp_path / "sae", dtype=None)
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
    torch.testing.assert_close(load(tmp_path, dtype=None).W_dec, sae.W_enc.T)


def test_sae_lens_options_fold_into_the_weights(tmp_path):
    """References: SAELens 6.54, `SAE.process_sae_in`, `TopKSAE.encode`, `GatedSAE.encode`."""
    x = torch.randn(30, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for name in ARCHITECTURES:
        sae = random_sae(name)
        save(sae, tmp_path / name)
        edit(tmp_path / name / CONFIG, apply_b_dec_to_input=False)
        torch.testing.assert_close(load(tmp_path / name, dtype=None)(x), sae.decode(sae.encode(x + sae.b_dec)))

    norms = torch.arange(1, 21, dtype=torch.float64)
    sae = random_sae("topk")
    save(sae.replace(W_dec=sae.W_dec * norms[:, None]), tmp_path / "rescaled")
    edit(tmp_path / "rescaled" / CONFIG, rescale_acts_by_decoder_norm=True)
    hidden = (((x - sae.b_dec) @ sae.W_enc + sae.b_enc) * norms).relu()
    kept = hidden >= hidden.topk(sae.k).values[:, -1:]
    torch.testing.assert_close(load(tmp_path / "rescaled", dtype=None).encode(x), hidden * kept)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": None}, "cfg.json: key 'architecture' is missing"),
        ({"architecture": "temporal"}, "cfg.json: architecture is 'temporal', expected one of standard, topk"),
        ({"dtype": "int8"}, "cfg.json: dtype is 'int8', expected one of float32"),
        ({"d_sae": None}, "cfg.json: d_sae is missing, expected a positive integer"),
        ({"d_sae": True}, "cfg.json: d_sae is True, expected a positive integer"),
        ({"k": 2.5}, "cfg.json: k is 2.5, expected a positive integer"),
        ({"k": 21}, "cfg.json: TopK: k is 21, expected 1 to d_sae 20"),
        ({"d_in": 7}, "sae_weights.safetensors: W_enc has shape .6, 20., cfg.json says .d_in 7, d_sae 20."),
        (
            {"normalize_activations": "layer_norm"},
            "normalize_activations is 'layer_norm', expected 'none': it scales each",
        ),
        ({"normalize_activations": "constant_norm_rescale"}, "expected 'none': it scales each activation by its own"),
        ({"normalize_activations": "expected_average_only_in"}, "fold_activation_norm_scaling_factor.* and save_model"),
        ({"normalize_activations": "covariance_whitening"}, "fold_activation_whitening.* and save_model"),
        ({"normalize_activations": True}, "cfg.json: normalize_activations is 'expected_average_only_in'"),
        ({"reshape_activations": "heads"}, "cfg.json: reshape_activations is 'heads', expected 'none' or 'hook_z'"),
        ({"apply_b_dec_to_input": "no"}, "cfg.json: apply_b_dec_to_input is 'no', expected true or false"),
        ({"architecture": "batchtopk"}, "architecture is 'batchtopk', which is a training's; .* save_inference_model"),
        (
            {"activation_fn_str": "relu"},
            "cfg.json: activation_fn_str is 'relu', expected 'topk' with architecture 'topk'",
        ),
        ({"metadata": [1]}, r"cfg.json: metadata is \[1\], expected an object"),
        ({"architecture": "x" * 1_000_000}, "cfg.json: architecture is 'xxx.{1,40}, expected one of"),
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
    save_file(tensors | {"b_gate": torch.ones(20)}, saved / WEIGHTS)
    with pytest.raises(FormatError, match="tensor 'b_gate' is foreign to architecture 'topk'"):
        load(saved)


def test_an_older_configuration_that_contradicts_itself_is_refused(tmp_path):
    for changes, message in (
        ({"activation_fn_str": "tanh-relu"}, "activation_fn_str is 'tanh-relu', expected 'relu' or 'topk'"),
        ({"activation_fn": "topk"}, "k is missing, expected a positive integer"),
        ({"activation_fn": "topk", "activation_fn_str": "relu"}, "activation_fn is 'topk', expected 'relu' or 'topk'"),
        ({"activation_fn": "topk", "activation_fn_kwargs": {"k": 5, "postact_fn": "x"}}, "expected 'k' alone"),
        (
            {"activation_fn": "topk", "activation_fn_kwargs": {"k": 0}},
            "activation_fn_kwargs.k is 0, expected a positive",
        ),
        ({"architecture": "topk", "k": 4, "activation_fn_kwargs": {"k": 5}}, "k is 4, but activation_fn_kwargs says 5"),
        ({"architecture": "jumprelu", "activation_fn": "topk"}, "expected 'relu' with architecture 'jumprelu'"),
    ):
        with pytest.raises(FormatError, match=message):
            load(older(tmp_path, random_sae("standard"), **changes))


def older(directory: Path, sae, tensors=(), **cfg) -> Path:
    """A directory as SAELens wrote it before version 6."""
    directory.mkdir(exist_ok=True)
    save_file(
        {name: getattr(sae, name) for name in sae.shapes} | {n: t.clone() for n, t in dict(tensors).items()},
        directory / WEIGHTS,
    )
    content = {"d_in": sae.d_in, "d_sae": sae.d_sae, "dtype": "torch.float64", "device": "cuda:0", **cfg}
    (directory / CONFIG).write_text(json.dumps(content))
    return directory


def test_weights_are_float32_where_the_configuration_names_no_dtype(saved):
    cfg = json.loads((saved / CONFIG).read_text())
    del cfg["dtype"]
    (saved / CONFIG).write_text(json.dumps(cfg))
    assert load(saved, dtype=None).dtype == torch.float32


def test_configurations_from_before_version_6_are_read_as_they_were_meant(tmp_path):
    """References: SAELens 5.11, `SAE.encode_standard`, `TopK.forward`; 2.1, `SparseAutoencoder.encode`."""
    x = torch.randn(30, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    sae = random_sae("standard")
    hidden = ((x - sae.b_dec) @ sae.W_enc + sae.b_enc).relu()
    largest = hidden * (hidden >= hidden.topk(3).values[:, -1:])
    topk = {"activation_fn_kwargs": {"k": 3}}
    for expected, cfg in (
        (hidden, {}),
        (hidden, {"architecture": "standard", "activation_fn_str": "relu", "activation_fn_kwargs": {}}),
        (hidden, {"activation_fn": "relu", "activation_fn_kwargs": {"k": 100}, "normalize_activations": False}),
        (hidden, {"activation_fn": "relu", "hook_point": "blocks.0.attn.hook_z", "rescale_acts_by_decoder_norm": True}),
        (largest, {"architecture": "standard", "activation_fn_str": "topk"} | topk),
        (largest, {"activation_fn": "topk"} | topk),
        (largest, {"architecture": "topk"} | topk),
    ):
        loaded = load(older(tmp_path, sae, **cfg), dtype=None)
        torch.testing.assert_close(loaded.encode(x), expected)
        torch.testing.assert_close(loaded(x), expected @ sae.W_dec + sae.b_dec)
    read = older(tmp_path, sae, hook_point="blocks.1.hook_mlp_out", hook_point_layer=1, model_name="gpt2", lr=1e-4)
    assert load(read).metadata == {"hook_name": "blocks.1.hook_mlp_out", "model_name": "gpt2"}


@pytest.mark.parametrize("name", ["scaling_factor", "finetuning_scaling_factor"])
def test_scales_of_latents_are_read_as_the_version_that_wrote_them_did(tmp_path, name):
    """Reference: SAELens 5.11, `SAE.decode`: (scale * z) W_dec + b_dec; 2.1 has the tensor and not the key."""
    x = torch.randn(30, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    sae, scale = random_sae("standard"), torch.linspace(-1, 3, 20, dtype=torch.float64)
    for cfg in ({"finetuning_scaling_factor": True}, {}):
        loaded = load(older(tmp_path, sae, {name: scale}, **cfg), dtype=None)
        torch.testing.assert_close(loaded.encode(x), sae.encode(x))
        torch.testing.assert_close(loaded(x), (scale * sae.encode(x)) @ sae.W_dec + sae.b_dec)
    ones = load(older(tmp_path, sae, {name: torch.ones_like(scale)}, finetuning_scaling_factor=False), dtype=None)
    torch.testing.assert_close(ones(x), sae(x), rtol=0, atol=0)
    with pytest.raises(
        FormatError, match=f"{name} is not 1 everywhere, but cfg.json says finetuning_scaling_factor: f"
    ):
        load(older(tmp_path, sae, {name: scale}, finetuning_scaling_factor=False))
    with pytest.raises(FormatError, match="scaling_factor and finetuning_scaling_factor are there both"):
        load(older(tmp_path, sae, dict.fromkeys(("scaling_factor", "finetuning_scaling_factor"), scale)))
    with pytest.raises(FormatError, match=rf"{name} has shape \[3\], cfg.json says \[d_sae 20\]"):
        load(older(tmp_path, sae, {name: scale[:3].clone()}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_latent_with_a_decoder_row_of_zeros_is_never_active_when_rescaled(tmp_path, dtype):
    sae = random_sae("topk", dtype=torch.float32)
    sae.W_dec[4] = 0
    save(sae.to(dtype), tmp_path)
    edit(tmp_path / CONFIG, rescale_acts_by_decoder_norm=True)
    x = torch.randn(30, 6, generator=torch.Generator().manual_seed(2))
    loaded = load(tmp_path)
    z = loaded.encode(x)
    assert (z[:, 4] == 0).all()
    # Rows of length 1 or 0: rescaling leaves the other latents as they are.
    hidden = loaded.replace(W_enc=sae.W_enc.float(), b_enc=sae.b_enc.float()).preactivations(x).relu()
    hidden[:, 4] = 0
    torch.testing.assert_close(z, hidden * (hidden >= hidden.topk(sae.k).values[:, -1:]), rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(loaded(x), z @ loaded.W_dec + loaded.b_dec)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_an_sae_of_another_precision_is_used_in_float32(tmp_path, name, dtype):
    save(random_sae(name, dtype=dtype), tmp_path)
    sae, x = load(tmp_path), torch.randn(50, 6, generator=torch.Generator().manual_seed(3))
    assert all(tensor.dtype == torch.float32 for tensor in sae.parameters())
    torch.testing.assert_close(sae.encode(x), random_sae(name, dtype=dtype).float().encode(x), rtol=0, atol=0)
    weights = torch.randn(6, 3, generator=torch.Generator().manual_seed(4))
    metrics = evaluate(sae, x, logits=lambda rows: rows @ weights)
    assert all(map(math.isfinite, metrics.values()))
    adjust_threshold(sae, x, 2.0)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_sae_takes_rows_of_any_precision(name):
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(3))
    for dtype in (torch.float16, torch.float64):
        assert random_sae(name, dtype=torch.float32)(x.to(dtype)).dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.fill_(1).long(), "W_dec holds numbers of type int64, expected floating point"),
        (lambda w: w > 0, "W_dec holds numbers of type bool, expected floating point"),
        (lambda w: w.to(torch.complex64), "W_dec holds numbers of type complex64, expected floating point"),
        (
            lambda w: w.index_fill(0, torch.tensor([2]), float("nan")),
            "W_dec holds 6 values that are not finite numbers",
        ),
        (lambda w: w.index_fill(1, torch.tensor([2]), -torch.inf), "W_dec holds 20 values that are not finite numbers"),
        (lambda w: w * 1e30, "W_dec has .* values beyond dtype 'float16', which cfg.json says"),
    ],
)
def test_weights_that_are_no_finite_floating_point_numbers_are_refused(saved, change, message):
    tensors = load_file(saved / WEIGHTS)
    save_file(tensors | {"W_dec": change(tensors["W_dec"])}, saved / WEIGHTS)
    if "float16" in message:
        edit(saved / CONFIG, dtype="float16")
    with pytest.raises(FormatError, match=f"{WEIGHTS}: {message}"):
        load(saved)


def test_a_pointer_of_git_lfs_is_told_from_weights(saved):
    (saved / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1234\nsize 98304\n")
    with pytest.raises(FormatError, match=f"{WEIGHTS}: a pointer of Git LFS, not the weights; run 'git lfs pull'"):
        load(saved)


@pytest.mark.parametrize("content", ["", "[" * 100_000, "\xff", '{"d_in": 1' + "0" * 5000 + "}"])
def test_a_configuration_that_is_no_json_is_refused(saved, content):
    (saved / CONFIG).write_bytes(content.encode("latin-1"))
    with pytest.raises(FormatError, match=r"cfg\.json: truncated or not JSON"):
        load(saved)


@pytest.mark.parametrize("file", [CONFIG, WEIGHTS])
def test_a_missing_file_is_named(saved, file):
    (saved / file).unlink()
    with pytest.raises(FileNotFoundError, match=f"{file}: not there"):
        load(saved)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_not_saved(tmp_path, value):
    sae = random_sae("standard")
    sae.W_dec[3, 2] = value
    with pytest.raises(ValueError, match="W_dec holds 1 values that are not finite numbers"):
        save(sae, tmp_path)


def test_metadata_that_is_not_json_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"metadata.path is PosixPath\('x'\), expected a JSON value"):
        save(random_sae("standard"), tmp_path, {"path": Path("x")})
