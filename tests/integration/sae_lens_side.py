"""Run by the interpreter that has sae_lens: load what saeflow saved, save what saeflow shall load.

    python sae_lens_side.py FOLDER

FOLDER/ours/<name>/ are saved SAEs, FOLDER/x.safetensors the activations to run them on. Written:
FOLDER/ours.safetensors (latents and reconstructions by sae_lens), FOLDER/read.json (metadata that it read of each, and
its explained variance), FOLDER/theirs/<name>/ (SAEs that sae_lens saved) and FOLDER/theirs.safetensors.
"""

import json
import sys
from pathlib import Path

import torch
from sae_lens import SAE, BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.evals import ExplainedVarianceCalculator
from sae_lens.registry import get_sae_class
from safetensors.torch import load_file, save_file


@torch.no_grad()
def run(sae, x):
    z = sae.encode(x)
    return {"latents": z, "reconstruction": sae.decode(z)}


def randomized(sae):
    for parameter in sae.parameters():
        parameter.data = torch.randn_like(parameter)
    return sae


def foreign(d_in, d_sae):
    """SAEs as sae_lens makes them, with the options that change what their weights mean."""
    torch.manual_seed(0)
    options = {
        "standard": {},
        "jumprelu": {"apply_b_dec_to_input": False},
        "gated": {"apply_b_dec_to_input": False},
        "topk": {"k": 7, "rescale_acts_by_decoder_norm": True, "apply_b_dec_to_input": False},
    }
    for architecture, changes in options.items():
        cls, config = get_sae_class(architecture)
        yield architecture, randomized(cls(config(d_in=d_in, d_sae=d_sae, **changes)))
        for dtype in ("float16", "float64"):
            yield f"{architecture}_{dtype}", randomized(cls(config(d_in=d_in, d_sae=d_sae, dtype=dtype, **changes)))
    trained = randomized(BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=d_in, d_sae=d_sae, k=7)))
    trained.topk_threshold.fill_(0.5)
    yield "batchtopk", trained
    cls, config = get_sae_class("standard")
    scaled = randomized(cls(config(d_in=d_in, d_sae=d_sae, normalize_activations="expected_average_only_in")))
    # What our refusal of such an SAE tells its reader to do.
    scaled.fold_activation_norm_scaling_factor(0.7)
    yield "folded", scaled


# Configurations as versions before 6 wrote them, on weights of a standard SAE.
OLDER = {
    "no_architecture": {"dtype": "float32"},
    "dtype_of_torch": {"architecture": "standard", "dtype": "torch.float32", "activation_fn_str": "relu"},
    "activation_fn_str": {
        "architecture": "standard",
        "dtype": "float32",
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": 7},
    },
    "activation_fn": {
        "dtype": "torch.float32",
        "activation_fn": "topk",
        "activation_fn_kwargs": {"k": 7},
        "apply_b_dec_to_input": False,
    },
    "topk": {"architecture": "topk", "dtype": "float32", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 7}},
    "attention": {"architecture": "standard", "dtype": "float32", "hook_name": "blocks.0.attn.hook_z"},
    "scaled_by_1": {"architecture": "standard", "dtype": "float32", "finetuning_scaling_factor": False},
    "normalize_false": {"architecture": "standard", "dtype": "float32", "normalize_activations": False},
}


def write_older(folder, name, d_in, d_sae):
    tensors = {"W_enc": torch.randn(d_in, d_sae), "W_dec": torch.randn(d_sae, d_in)}
    tensors |= {"b_enc": torch.randn(d_sae), "b_dec": torch.randn(d_in)}
    if name == "scaled_by_1":
        tensors["scaling_factor"] = torch.ones(d_sae)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"d_in": d_in, "d_sae": d_sae, **OLDER[name]}))


def main(folder: Path) -> None:
    x = load_file(folder / "x.safetensors")["x"]
    ours, read = {}, {}
    for directory in sorted((folder / "ours").iterdir()):
        sae = SAE.load_from_disk(directory)
        values = run(sae, x)
        ours |= {f"{directory.name}/{key}": value for key, value in values.items()}
        calculator = ExplainedVarianceCalculator()
        for rows, reconstructed in zip(x.split(150), values["reconstruction"].split(150), strict=True):
            calculator.add_batch(reconstructed, rows)
        read[directory.name] = {
            "architecture": sae.cfg.architecture(),
            "explained_variance": calculator.compute(),
            "metadata": sae.cfg.metadata.to_dict(),
        }
    save_file(ours, folder / "ours.safetensors")
    (folder / "read.json").write_text(json.dumps(read))

    theirs = {}
    for name, sae in foreign(x.shape[1], 4 * x.shape[1]):
        directory = folder / "theirs" / name
        sae.save_inference_model(directory) if hasattr(sae, "save_inference_model") else sae.save_model(directory)
        theirs |= {f"{name}/{key}": value for key, value in run(SAE.load_from_disk(directory), x).items()}
    for name in OLDER:
        directory = folder / "theirs" / f"older_{name}"
        write_older(directory, name, x.shape[1], 4 * x.shape[1])
        sae = SAE.load_from_disk(directory)
        # Heads side by side, in the shape that it wants.
        heads = x.unflatten(1, (4, -1)) if name == "attention" else x
        theirs |= {f"older_{name}/{key}": v.reshape(len(x), -1) for key, v in run(sae, heads).items()}
    save_file(theirs, folder / "theirs.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
