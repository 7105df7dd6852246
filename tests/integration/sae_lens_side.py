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
    trained = randomized(BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=d_in, d_sae=d_sae, k=7)))
    trained.topk_threshold.fill_(0.5)
    yield "batchtopk", trained


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
    save_file(theirs, folder / "theirs.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
