"""Sparse autoencoders on disk, in SAELens's directory format: `cfg.json` beside `sae_weights.safetensors`.

`sae_lens.SAE.load_from_disk(directory)` reads what `save` writes. What `save` writes depends on nothing but the SAE and
its metadata: equal content is equal bytes.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from saeflow import __version__
from saeflow.reproduce import write_json
from saeflow.sae import saelens_config
from saeflow.sae.architectures import SparseAutoencoder
from saeflow.sae.saelens_config import FormatError, SAEConfig

CONFIG = "cfg.json"
WEIGHTS = "sae_weights.safetensors"

# SAELens takes a file without this for one from before version 6, and then drops the nested metadata in silence.
SAE_LENS_VERSION = "6.54.12"

# Scales of the latents before they are decoded: the name until version 2, and the one until version 5.
_SCALES = ("scaling_factor", "finetuning_scaling_factor")
_LFS_POINTER = b"version https://git-lfs"

__all__ = ["CONFIG", "WEIGHTS", "FormatError", "load", "save"]


def save(sae: SparseAutoencoder, directory: Path | str, metadata: Mapping[str, Any] | None = None) -> None:
    """Write an SAE.

    Arguments:
        sae: on any device.
        directory: made if it is not there; files of these names in it are replaced.
        metadata: free JSON values. SAELens knows `model_name`, `hook_name`, `hook_head_index`, `prepend_bos`,
            `context_size`, `seqpos_slice`, `dataset_path` and `model_from_pretrained_kwargs`.
            Default: the SAE's own metadata.

    Raises:
        ValueError: weights that are not finite, or metadata that is not JSON; names the tensor or the key.
    """
    tensors = {name: getattr(sae, name).detach().cpu().contiguous().clone() for name in sae.shapes}
    for name, tensor in tensors.items():
        if n_wrong := _not_finite(tensor):
            raise ValueError(f"{directory}: {name} holds {n_wrong} values that are not finite numbers")
    metadata = dict(sae.metadata if metadata is None else metadata)
    for key, value in metadata.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{directory}: metadata.{key} is {value!r}, expected a JSON value ({error})") from None
    ours = {"sae_lens_version": SAE_LENS_VERSION, "sae_lens_training_version": None, "saeflow_version": __version__}
    cfg = {
        "architecture": sae.architecture,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": str(sae.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        **{name: getattr(sae, name) for name in sae.settings},
        "metadata": metadata | ours,
    }
    if sae.architecture == "topk":
        cfg["rescale_acts_by_decoder_norm"] = False
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / WEIGHTS)
    write_json(directory / CONFIG, cfg)


def load(
    directory: Path | str, device: torch.device | str = "cpu", dtype: torch.dtype | None = torch.float32
) -> SparseAutoencoder:
    """Read an SAE that `save` or SAELens wrote; its metadata is in `.metadata`.

    What SAELens keeps as options is folded into the weights, which changes the last bits of latents and
    reconstructions: `apply_b_dec_to_input: false`, `rescale_acts_by_decoder_norm: true` and scales of the latents.
    An SAE of attention heads (`hook_z`) takes the heads side by side.

    Arguments:
        directory: with the two files.
        dtype: that the weights come in, rounded to the one of the file before; None for that one. Models, stores and
            features compute in float32.
    Raises:
        FileNotFoundError: no such directory, or one of the two files missing.
        FormatError: broken files, an architecture or options that this library does not compute, tensors that are
            missing, foreign, of the wrong shape or kind of number, or not finite.
    """
    directory = Path(directory)
    config, weights = directory / CONFIG, directory / WEIGHTS
    for path, is_there in ((directory, directory.is_dir()), (config, config.is_file()), (weights, weights.is_file())):
        if not is_there:
            raise FileNotFoundError(f"{path}: not there; an SAE is a directory with {CONFIG} and {WEIGHTS}")
    cfg = saelens_config.read(config)
    tensors = _read_weights(weights, cfg)
    scale = _scale(weights, cfg, {name: tensors.pop(name) for name in _SCALES if name in tensors})
    _fold(tensors, cfg, scale)
    tensors = {name: tensor.to(dtype or cfg.dtype) for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        if n_wrong := _not_finite(tensor):
            raise FormatError(
                f"{weights}: {name} has {n_wrong} values beyond {tensor.dtype} with the options of {CONFIG}"
            )
    try:
        sae = cfg.architecture(**tensors, **cfg.settings)
    except ValueError as error:
        raise FormatError(f"{config}: {error}") from None
    sae.metadata = dict(cfg.metadata)
    return sae.to(device)


def _read_weights(path: Path, cfg: SAEConfig) -> dict[str, Tensor]:
    """Exactly the tensors of an architecture, rounded to the dtype of the configuration; and scales of the latents."""
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        with open(path, "rb") as file:
            pointer = file.read(len(_LFS_POINTER)) == _LFS_POINTER
        what = (
            "a pointer of Git LFS, not the weights; run 'git lfs pull'" if pointer else "truncated or not safetensors"
        )
        raise FormatError(f"{path}: {what} ({error})") from None
    cls = cfg.architecture
    shapes = dict(cls.shapes) | {name: ("d_sae",) for name in _SCALES if name in tensors}
    for name in (*shapes, *tensors):
        if name not in tensors:
            raise FormatError(f"{path}: tensor '{name}' is missing; architecture '{cls.architecture}' needs it")
        if name not in shapes:
            known = ", ".join(cls.shapes)
            raise FormatError(f"{path}: tensor '{name}' is foreign to architecture '{cls.architecture}' ({known})")
        if list(tensors[name].shape) != [cfg.sizes[axis] for axis in shapes[name]]:
            expected = ", ".join(f"{axis} {cfg.sizes[axis]}" for axis in shapes[name])
            raise FormatError(f"{path}: {name} has shape {list(tensors[name].shape)}, {CONFIG} says [{expected}]")
    return {name: _number(path, name, tensor, cfg.dtype) for name, tensor in tensors.items()}


def _number(path: Path, name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor as the configuration wants it, in float32 at least."""
    if not tensor.is_floating_point():
        found = str(tensor.dtype).removeprefix("torch.")
        raise FormatError(f"{path}: {name} holds numbers of type {found}, expected floating point")
    at_least = torch.promote_types(dtype, torch.float32)
    if n_wrong := _not_finite(tensor.to(at_least)):
        raise FormatError(f"{path}: {name} holds {n_wrong} values that are not finite numbers")
    rounded = tensor.to(dtype).to(at_least)
    if n_wrong := _not_finite(rounded):
        stated = str(dtype).removeprefix("torch.")
        raise FormatError(f"{path}: {name} has {n_wrong} values beyond dtype '{stated}', which {CONFIG} says")
    return rounded


def _not_finite(tensor: Tensor) -> int:
    return int((~tensor.isfinite()).sum())


def _scale(path: Path, cfg: SAEConfig, scales: Mapping[str, Tensor]) -> Tensor | None:
    """What latents are multiplied by before they are decoded; as in SAELens, none where it is 1 everywhere."""
    if len(scales) > 1:
        raise FormatError(f"{path}: {' and '.join(scales)} are there both; take the one out that does not count")
    found = {name: scale for name, scale in scales.items() if not torch.allclose(scale, torch.ones_like(scale))}
    if found and cfg.scaled is False:
        raise FormatError(
            f"{path}: {next(iter(found))} is not 1 everywhere, but {CONFIG} says finetuning_scaling_factor: false; "
            "say true if latents are multiplied by it before they are decoded, else take the tensor out"
        )
    return next(iter(found.values()), None)


def _fold(tensors: dict[str, Tensor], cfg: SAEConfig, scale: Tensor | None) -> None:
    """Turn SAELens's options into the one form that this library computes: b_dec subtracted, latents not rescaled."""
    if not cfg.subtracts_b_dec:
        shift = tensors["b_dec"] @ tensors["W_enc"]
        if "b_mag" in tensors:
            tensors["b_gate"] = tensors["b_gate"] + shift
            tensors["b_mag"] = tensors["b_mag"] + shift * tensors["r_mag"].exp()
        else:
            tensors["b_enc"] = tensors["b_enc"] + shift
    if cfg.rescaled:
        norms = tensors["W_dec"].norm(dim=1)
        # A latent whose row is zero is zero itself: there is nothing to divide.
        tensors["W_dec"] = tensors["W_dec"] / norms.where(norms > 0, 1)[:, None]
        tensors["W_enc"], tensors["b_enc"] = tensors["W_enc"] * norms, tensors["b_enc"] * norms
    if scale is not None:
        tensors["W_dec"] = tensors["W_dec"] * scale[:, None]
