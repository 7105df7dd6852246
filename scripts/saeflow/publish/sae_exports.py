"""SAEs in the formats of other libraries, for readers who have those; SAELens needs none, its format is our own.

What a format cannot say exactly is left out with the reason, never approximated.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import embedding_bag

from saeflow.reproduce import write_json
from saeflow.sae import formats
from saeflow.sae.architectures import Gated, JumpReLU, ReLU, SparseAutoencoder, TopK

Reconstruct = Callable[[Tensor], Tensor]


class NotRepresentableError(ValueError):
    """An SAE that a format cannot say exactly; the message says why."""


def write_saelens(source: Path, folder: Path) -> None:
    """The SAE's own two files, byte for byte."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (formats.CONFIG, formats.WEIGHTS):
        shutil.copyfile(source / name, folder / name)


def write_sparsify(sae: SparseAutoencoder, folder: Path) -> None:
    """`sparsify.SparseCoder.load_from_disk(folder)`; the library wants a folder per hook point, called as it is.

    Raises:
        NotRepresentableError: thresholds or gates; the format knows the k largest only.
    """
    if not isinstance(sae, TopK | ReLU):
        raise NotRepresentableError(f"sparsify keeps the k largest latents; it has no form for '{sae.architecture}'")
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"encoder.weight": sae.W_enc.T, "encoder.bias": sae.b_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec}
    save_file({name: _plain(tensor) for name, tensor in tensors.items()}, folder / "sae.safetensors")
    config = {"activation": "topk", "expansion_factor": sae.d_sae // sae.d_in, "num_latents": sae.d_sae}
    # All of a ReLU SAE's latents are among the d_sae largest.
    config |= {"k": sae.k if isinstance(sae, TopK) else sae.d_sae, "d_in": sae.d_in}
    config |= {"normalize_decoder": sae.unit_norm_decoder, "multi_topk": False}
    write_json(folder / "cfg.json", config | {"skip_connection": False, "transcode": False})


def write_dictionary_learning(
    sae: SparseAutoencoder, folder: Path, *, model: str, module: str, layer: int | None
) -> None:
    """`dictionary_learning.utils.load_dictionary(folder, device)`.

    Its `ae.pt` is a pickle, because that is what the library loads: of plain tensors, as `weights_only` demands.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name, tensors = _dictionary(sae)
    torch.save({key: _plain(tensor) for key, tensor in tensors.items()}, folder / "ae.pt")
    trainer = {"dict_class": name, "activation_dim": sae.d_in, "dict_size": sae.d_sae, "lm_name": model}
    trainer |= {"layer": layer, "submodule_name": module}
    if "k" in tensors:
        trainer["k"] = int(tensors["k"])
    write_json(folder / "config.json", {"trainer": trainer, "buffer": {}})


def _dictionary(sae: SparseAutoencoder) -> tuple[str, dict[str, Tensor]]:
    """Class and state of an SAE in dictionary_learning."""
    linear = {"encoder.weight": sae.W_enc.T, "decoder.weight": sae.W_dec.T}
    match sae:
        case ReLU():
            return "AutoEncoder", linear | {"encoder.bias": sae.b_enc, "bias": sae.b_dec}
        case TopK():
            numbers = {"k": torch.tensor(sae.k, dtype=torch.int32), "threshold": torch.tensor(-1.0)}
            return "AutoEncoderTopK", linear | {"encoder.bias": sae.b_enc, "b_dec": sae.b_dec} | numbers
        case JumpReLU() if bool((sae.threshold == sae.threshold[0]).all()):
            # With one threshold its BatchTopK does exactly this; its k is of training alone.
            numbers = {"k": torch.tensor(1, dtype=torch.int32), "threshold": sae.threshold[0].float()}
            return "BatchTopKSAE", linear | {"encoder.bias": sae.b_enc, "b_dec": sae.b_dec} | numbers
        case JumpReLU():
            # Its JumpReLU does not subtract b_dec from the input.
            shift = (sae.b_dec.double() @ sae.W_enc.double()).to(sae.dtype)
            names = ("W_enc", "W_dec", "b_dec", "threshold")
            return "JumpReluAutoEncoder", {n: getattr(sae, n) for n in names} | {"b_enc": sae.b_enc - shift}
        case Gated():
            gates = {"r_mag": sae.r_mag, "gate_bias": sae.b_gate, "mag_bias": sae.b_mag, "decoder_bias": sae.b_dec}
            return "GatedAutoEncoder", linear | gates
    raise NotRepresentableError(f"dictionary_learning has no form for '{sae.architecture}'")


def read_sparsify(folder: Path, config: dict) -> Reconstruct:
    """What the sparsify files reconstruct, computed as the library does."""
    t = load_file(folder / "sae.safetensors")

    def reconstruct(x: Tensor) -> Tensor:
        preactivations = ((x - t["b_dec"]) @ t["encoder.weight"].T + t["encoder.bias"]).relu()
        values, indices = preactivations.topk(config["k"], dim=-1, sorted=False)
        return embedding_bag(indices, t["W_dec"], mode="sum", per_sample_weights=values) + t["b_dec"]

    return reconstruct


def read_dictionary(folder: Path, config: dict) -> Reconstruct:
    """What the dictionary_learning files reconstruct, computed as the library does."""
    t = torch.load(folder / "ae.pt", weights_only=True)
    name = config["trainer"]["dict_class"]

    def reconstruct(x: Tensor) -> Tensor:
        if name == "JumpReluAutoEncoder":
            p = x @ t["W_enc"] + t["b_enc"]
            return (p * (p > t["threshold"])).relu() @ t["W_dec"] + t["b_dec"]
        bias = t["b_dec" if "b_dec" in t else "decoder_bias" if "decoder_bias" in t else "bias"]
        p = (x - bias) @ t["encoder.weight"].T
        if name == "GatedAutoEncoder":
            z = (p + t["gate_bias"] > 0) * (t["r_mag"].exp() * p + t["mag_bias"]).relu()
        else:
            z = (p + t["encoder.bias"]).relu()
        if name == "BatchTopKSAE":
            z = z * (z > t["threshold"])
        elif name == "AutoEncoderTopK":
            values, indices = z.topk(int(t["k"]), dim=-1)
            z = torch.zeros_like(z).scatter(-1, indices, values)
        return z @ t["decoder.weight"].T + bias

    return reconstruct


def write_older(sae: SparseAutoencoder, folder: Path, metadata: dict, features: list[dict]) -> None:
    """The package under the names that the project's first scripts gave its files.

    Arguments:
        metadata: of `neuronpedia_metadata.json`.
        features: of `feature_analysis.json`, one per latent.
    """
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "decoder_weights.npy", sae.W_dec.detach().cpu().float().numpy(), allow_pickle=False)
    save_file({name: _plain(getattr(sae, name)) for name in sae.shapes}, folder / "sae_model.safetensors")
    write_json(folder / "neuronpedia_metadata.json", metadata)
    write_json(folder / "feature_analysis.json", {"n_features": len(features), "features": features})


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().clone()
