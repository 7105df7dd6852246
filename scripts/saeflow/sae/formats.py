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
from saeflow.sae.architectures import ARCHITECTURES, SparseAutoencoder

CONFIG = "cfg.json"
WEIGHTS = "sae_weights.safetensors"

# SAELens takes a file without this for one from before version 6, and then drops the nested metadata in silence.
SAE_LENS_VERSION = "6.54.12"

_PLAIN = {"normalize_activations": "none", "reshape_activations": "none"}
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}


class FormatError(ValueError):
    """A directory that holds no SAE that this library understands; names the file, the key and what would be right."""


def save(sae: SparseAutoencoder, directory: Path | str, metadata: Mapping[str, Any] | None = None) -> None:
    """Write an SAE.

    Arguments:
        sae: on any device.
        directory: made if it is not there; files of these names in it are replaced.
        metadata: free JSON values. SAELens knows `model_name`, `hook_name`, `hook_head_index`, `prepend_bos`,
            `context_size`, `seqpos_slice`, `dataset_path` and `model_from_pretrained_kwargs`.
            Default: the SAE's own metadata.

    Raises:
        ValueError: weights that are not a number, or metadata that is not JSON; names the tensor or the key.
    """
    tensors = {name: getattr(sae, name).detach().cpu().contiguous().clone() for name in sae.shapes}
    for name, tensor in tensors.items():
        if tensor.isnan().any():
            raise ValueError(f"{directory}: {name} holds {int(tensor.isnan().sum())} values that are not a number")
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
        **_PLAIN,
        **{name: getattr(sae, name) for name in sae.settings},
        "metadata": metadata | ours,
    }
    if sae.architecture == "topk":
        cfg["rescale_acts_by_decoder_norm"] = False
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / WEIGHTS)
    write_json(directory / CONFIG, cfg)


def load(directory: Path | str, device: torch.device | str = "cpu") -> SparseAutoencoder:
    """Read an SAE that `save` or SAELens wrote; its metadata is in `.metadata`.

    SAELens's options `apply_b_dec_to_input: false` and `rescale_acts_by_decoder_norm: true` are folded into the
    weights, which changes the last bits of latents and reconstructions.

    Raises:
        FileNotFoundError: no such directory, or one of the two files missing.
        FormatError: broken files, unknown architecture, options that cannot be folded, tensors that are missing,
            foreign or of the wrong shape.
    """
    directory = Path(directory)
    for path in (directory, directory / CONFIG, directory / WEIGHTS):
        if not path.exists():
            raise FileNotFoundError(f"{path}: not there; an SAE is a directory with {CONFIG} and {WEIGHTS}")
    cfg, cls = _read_config(directory / CONFIG)
    tensors = _read_weights(directory / WEIGHTS, cls, cfg)
    _fold(tensors, cfg)
    try:
        sae = cls(**tensors, **{name: cfg[name] for name in cls.settings})
    except ValueError as error:
        raise FormatError(f"{directory / CONFIG}: {error}") from None
    sae.metadata = cfg.get("metadata") or {}
    return sae.to(device)


def _read_config(path: Path) -> tuple[dict[str, Any], type[SparseAutoencoder]]:
    """Configuration of an SAE, and its class."""
    try:
        cfg = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FormatError(f"{path}: truncated or not JSON ({error})") from None
    if not isinstance(cfg, dict):
        raise FormatError(f"{path}: holds a {type(cfg).__name__}, expected an object")
    for key, known in (("architecture", ARCHITECTURES), ("dtype", _DTYPES)):
        if key not in cfg:
            raise FormatError(f"{path}: key '{key}' is missing")
        if cfg[key] not in known:
            raise FormatError(f"{path}: {key} is {cfg[key]!r}, expected one of {', '.join(known)}")
    cls = ARCHITECTURES[cfg["architecture"]]
    for key in ("d_in", "d_sae", *cls.settings):
        if not (isinstance(cfg.get(key), int) and cfg[key] > 0):
            raise FormatError(f"{path}: {key} is {cfg.get(key, 'missing')!r}, expected a positive integer")
    for key, value in _PLAIN.items():
        if cfg.get(key, value) not in (value, None):
            raise FormatError(f"{path}: {key} is {cfg[key]!r}, expected '{value}': fold it into the weights first")
    return cfg, cls


def _read_weights(path: Path, cls: type[SparseAutoencoder], cfg: Mapping[str, Any]) -> dict[str, Tensor]:
    """Exactly the tensors of an architecture, in the dtype of the configuration."""
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise FormatError(f"{path}: truncated or not safetensors ({error})") from None
    for name in (*cls.shapes, *tensors):
        if name not in tensors:
            raise FormatError(f"{path}: tensor '{name}' is missing; architecture '{cls.architecture}' needs it")
        if name not in cls.shapes:
            known = ", ".join(cls.shapes)
            raise FormatError(f"{path}: tensor '{name}' is foreign to architecture '{cls.architecture}' ({known})")
        axes = cls.shapes[name]
        if list(tensors[name].shape) != [cfg[axis] for axis in axes]:
            expected = ", ".join(f"{axis} {cfg[axis]}" for axis in axes)
            raise FormatError(f"{path}: {name} has shape {list(tensors[name].shape)}, {CONFIG} says [{expected}]")
    return {name: tensor.to(_DTYPES[cfg["dtype"]]) for name, tensor in tensors.items()}


def _fold(tensors: dict[str, Tensor], cfg: Mapping[str, Any]) -> None:
    """Turn SAELens's options into the one form that this library computes: b_dec subtracted, decoder not rescaled."""
    if not cfg.get("apply_b_dec_to_input", True):
        shift = tensors["b_dec"] @ tensors["W_enc"]
        if "b_mag" in tensors:
            tensors["b_gate"] = tensors["b_gate"] + shift
            tensors["b_mag"] = tensors["b_mag"] + shift * tensors["r_mag"].exp()
        else:
            tensors["b_enc"] = tensors["b_enc"] + shift
    if cfg.get("rescale_acts_by_decoder_norm", False):
        norms = tensors["W_dec"].norm(dim=1)
        tensors["W_dec"] = tensors["W_dec"] / norms[:, None]
        tensors["W_enc"], tensors["b_enc"] = tensors["W_enc"] * norms, tensors["b_enc"] * norms
