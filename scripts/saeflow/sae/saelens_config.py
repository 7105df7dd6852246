"""What the `cfg.json` of an SAE means, in the words of every SAELens from 2.0 on.

Until version 5 the activation function had keys of its own, and what is said of the model lay beside them; since
version 6 the architecture says it, and `metadata` holds the rest. Read after SAELens 2.1, 3.13, 3.23, 4.4, 5.11, 6.0,
6.22 and 6.54: `SAEConfig.from_dict`, `handle_config_defaulting`, `handle_pre_6_0_config`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shown
from typing import Any

import torch

from saeflow.sae.architectures import ARCHITECTURES, SparseAutoencoder

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
_RENAMED = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index"}
# What version 6 takes into the metadata of an older SAE.
_METADATA = (
    "model_name",
    "hook_name",
    "model_class_name",
    "hook_head_index",
    "model_from_pretrained_kwargs",
    "prepend_bos",
    "exclude_special_tokens",
    "neuronpedia_id",
    "context_size",
    "seqpos_slice",
    "dataset_path",
    "sae_lens_training_version",
)
_TRAINING_ONLY = ("batchtopk", "matryoshka_batchtopk")
_BY_ROW = "it scales each activation by its own spread, which no weights can hold; this SAE cannot be used here"
_UNFOLDED = {
    "expected_average_only_in": "the scale of the activations is not in the file; in SAELens, load the SAE, call "
    "fold_activation_norm_scaling_factor(sqrt(d_in) / mean norm of the activations) and save_model",
    "covariance_whitening": "the whitening is not in the file; in SAELens, load the SAE, call "
    "fold_activation_whitening(mean, matrix, inverse) and save_model",
    "layer_norm": _BY_ROW,
    "constant_norm_rescale": _BY_ROW,
}


class FormatError(ValueError):
    """A directory that holds no SAE that this library understands; names the file, the key and what would be right."""


@dataclass(frozen=True)
class SAEConfig:
    """What a configuration says of its weights.

    Arguments:
        architecture: class of the SAE.
        sizes: d_in and d_sae.
        settings: numbers that the class takes beside the tensors.
        dtype: of the weights when they are used.
        subtracts_b_dec: whether b_dec is subtracted from the input.
        rescaled: whether latents are in units of the decoder row's length.
        scaled: whether a tensor that scales the latents before they are decoded counts; None if nothing is said.
        metadata: where the SAE comes from.
    """

    architecture: type[SparseAutoencoder]
    sizes: dict[str, int]
    settings: dict[str, int]
    dtype: torch.dtype
    subtracts_b_dec: bool
    rescaled: bool
    scaled: bool | None
    metadata: dict[str, Any]


def read(path: Path) -> SAEConfig:
    """Read a `cfg.json`.

    Raises:
        FormatError: not JSON, a key that is missing, or a value that this library cannot compute.
    """
    try:
        cfg = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: truncated or not JSON ({error})") from None
    if not isinstance(cfg, dict):
        raise FormatError(f"{path}: holds a {type(cfg).__name__}, expected an object")
    try:
        return _understood(cfg)
    except _RefusedError as error:
        raise FormatError(f"{path}: {error}") from None


class _RefusedError(ValueError):
    """A key whose value is not understood; says what would be right."""


def _understood(cfg: Mapping[str, Any]) -> SAEConfig:
    metadata = cfg.get("metadata")
    if metadata is not None and not isinstance(metadata, dict):
        raise _RefusedError(f"metadata is {shown(metadata)}, expected an object")
    version = cfg.get("sae_lens_version") or (metadata or {}).get("sae_lens_version")
    major = str(version).partition(".")[0]
    before_6 = not (major.isdecimal() and int(major) >= 6)
    if before_6:
        cfg = {_RENAMED.get(key, key): value for key, value in cfg.items()}
        metadata = {key: cfg[key] for key in _METADATA if key in cfg} | (metadata or {})
    name = _architecture(cfg, before_6)
    _check_activations(cfg)
    cls = ARCHITECTURES[name]
    return SAEConfig(
        architecture=cls,
        sizes={key: _positive(key, cfg.get(key)) for key in ("d_in", "d_sae")},
        settings={key: _setting(cfg, key, before_6) for key in cls.settings},
        dtype=_dtype(cfg),
        subtracts_b_dec=_flag(cfg, "apply_b_dec_to_input", True),
        # The other architectures of SAELens do not know the key.
        rescaled=name == "topk" and _flag(cfg, "rescale_acts_by_decoder_norm", False),
        scaled=_flag(cfg, "finetuning_scaling_factor", None),
        metadata=metadata or {},
    )


def _architecture(cfg: Mapping[str, Any], before_6: bool) -> str:
    """Name of the architecture, which until version 5 the activation function may say."""
    name = cfg.get("architecture")
    if name is None:
        if not before_6:
            raise _RefusedError("key 'architecture' is missing")
        name = "standard"
    if name in _TRAINING_ONLY:
        raise _RefusedError(
            f"architecture is '{name}', which is a training's; in SAELens, load it with TrainingSAE.load_from_disk "
            "and write it with save_inference_model"
        )
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise _RefusedError(f"architecture is {shown(name)}, expected one of {', '.join(ARCHITECTURES)}")
    said = {key: cfg[key] for key in ("activation_fn", "activation_fn_str") if cfg.get(key) is not None}
    if before_6 and name == "standard" and said and all(value == "topk" for value in said.values()):
        return "topk"
    own = "topk" if name == "topk" else "relu"
    for key, value in said.items():
        if value != own:
            expected = "'relu' or 'topk'" if before_6 and name == "standard" else f"'{own}'"
            raise _RefusedError(f"{key} is {shown(value)}, expected {expected} with architecture '{name}'")
    return name


def _setting(cfg: Mapping[str, Any], key: str, before_6: bool) -> int:
    """A number of the architecture; until version 5 it is an argument of the activation function."""
    arguments = cfg.get("activation_fn_kwargs") or {}
    if not before_6 or not arguments:
        return _positive(key, cfg.get(key))
    if not isinstance(arguments, dict) or set(arguments) != {key}:
        raise _RefusedError(f"activation_fn_kwargs is {shown(arguments)}, expected '{key}' alone")
    if cfg.get(key) not in (None, arguments[key]):
        raise _RefusedError(
            f"{key} is {shown(cfg[key])}, but activation_fn_kwargs says {shown(arguments[key])}; take one out"
        )
    return _positive(f"activation_fn_kwargs.{key}", arguments[key])


def _check_activations(cfg: Mapping[str, Any]) -> None:
    """Refuse what is done to activations before the weights; heads that are put side by side are rows of a store."""
    normalized = cfg.get("normalize_activations")
    if isinstance(normalized, bool):
        normalized = "expected_average_only_in" if normalized else "none"
    if normalized not in (None, "none"):
        advice = _UNFOLDED.get(str(normalized), "SAELens knows no such one")
        raise _RefusedError(f"normalize_activations is {shown(normalized)}, expected 'none': {advice}")
    if cfg.get("reshape_activations") not in (None, "none", "hook_z"):
        raise _RefusedError(f"reshape_activations is {shown(cfg['reshape_activations'])}, expected 'none' or 'hook_z'")


def _positive(key: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        found = "missing" if value is None else shown(value)
        raise _RefusedError(f"{key} is {found}, expected a positive integer")
    return value


def _flag(cfg: Mapping[str, Any], key: str, default: bool | None) -> bool | None:
    if not isinstance(cfg.get(key, default), bool | None):
        raise _RefusedError(f"{key} is {shown(cfg[key])}, expected true or false")
    return default if cfg.get(key) is None else cfg[key]


def _dtype(cfg: Mapping[str, Any]) -> torch.dtype:
    said = cfg.get("dtype")
    name = "float32" if said is None else str(said).removeprefix("torch.")  # SAELens's default
    if name not in _DTYPES:
        raise _RefusedError(f"dtype is {shown(said)}, expected one of {', '.join(_DTYPES)}")
    return _DTYPES[name]
