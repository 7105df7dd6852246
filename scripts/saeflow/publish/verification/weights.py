"""Checks of the SAE: in SAELens's format, and in the others as the same function."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from saeflow.publish import sae_exports
from saeflow.publish.verification.checks import check
from saeflow.publish.verification.opened import BlockedError, Package
from saeflow.sae.architectures import ARCHITECTURES

TOLERANCE = 1e-6
"""Of the largest value that is reconstructed."""


@check("saelens/cfg.json is JSON with the keys that SAELens asks for")
def saelens_config_is_readable(package: Package) -> str | None:
    keys = ("architecture", "d_in", "d_sae", "dtype", "metadata")
    absent = [key for key in keys if key not in package.saelens_config]
    return f"saelens/cfg.json: {', '.join(absent)} missing" if absent else None


@check("SAELens takes the file for one of version 6 or newer, and so keeps its metadata")
def saelens_version_is_stated(package: Package) -> str | None:
    version = str((package.saelens_config.get("metadata") or {}).get("sae_lens_version", ""))
    major = version.partition(".")[0]
    good = major.isdigit() and int(major) >= 6
    return None if good else f"metadata.sae_lens_version is {version!r}, expected 6 or more"


@check("the SAELens directory loads: all tensors of its architecture, each of its shape")
def saelens_loads(package: Package) -> str | None:
    _ = package.sae
    return None


@check("no weight is NaN or infinite")
def weights_are_finite(package: Package) -> str | None:
    return package.not_finite


@check("weights have the number type that the configuration states")
def weights_have_the_stated_dtype(package: Package) -> str | None:
    return package.other_dtype


@check("no decoder row is zero")
def decoder_rows_are_not_zero(package: Package) -> str | None:
    norms = package.sae.W_dec.norm(dim=1)
    zero = (norms == 0).nonzero()[:, 0].tolist()
    return f"zero rows: {zero[:5]}" if zero else None


@check("thresholds are not negative")
def thresholds_are_not_negative(package: Package) -> str | None:
    threshold = getattr(package.sae, "threshold", None)
    lowest = 0.0 if threshold is None else float(threshold.min())
    return f"lowest threshold {lowest:g}" if lowest < 0 else None


@check("the manifest has the SAE's sizes")
def sizes_agree(package: Package) -> str | None:
    said = {key: package.manifest[key] for key in ("d_in", "d_sae")}
    found = {"d_in": package.sae.d_in, "d_sae": package.sae.d_sae}
    return None if said == found else f"package.json says {said}, the weights are {found}"


@check("the manifest has the SAE's architecture")
def architecture_agrees(package: Package) -> str | None:
    said, found = package.manifest["architecture"], package.saelens_config.get("architecture")
    if found not in ARCHITECTURES:
        raise BlockedError("saelens_loads", f"architecture {found!r} is not known")
    return None if said == found else f"package.json says {said}, cfg.json {found}"


@check("the SAE's metadata names the hook point of the manifest")
def hook_point_agrees(package: Package) -> str | None:
    said = package.manifest["hook_point"]
    found = (package.saelens_config.get("metadata") or {}).get("hook_name")
    return None if found == said else f"package.json says {said}, metadata.hook_name {found}"


@check("sparsify's configuration has the SAE's sizes and k")
def sparsify_config_says_the_same(package: Package) -> str | None:
    config, sae = package.sparsify_config, package.sae
    expected = {"d_in": sae.d_in, "num_latents": sae.d_sae, "k": getattr(sae, "k", sae.d_sae)}
    found = {key: config.get(key) for key in expected}
    return None if found == expected else f"sparsify says {found}, expected {expected}"


@check("sparsify reconstructs what SAELens does, within 1e-6 of the largest value")
def sparsify_reconstructs_the_same(package: Package) -> str | None:
    folder = package.sparsify_folder
    if sparsify_config_says_the_same(package):
        raise BlockedError("sparsify_config_says_the_same", "")
    return _differs(package, partial(sae_exports.read_sparsify, folder, package.sparsify_config), "sparsify")


@check("dictionary_learning's configuration has the SAE's sizes and a class that it knows")
def dictionary_config_says_the_same(package: Package) -> str | None:
    trainer, sae = package.dictionary_config["trainer"], package.sae
    known = ("AutoEncoder", "AutoEncoderTopK", "BatchTopKSAE", "JumpReluAutoEncoder", "GatedAutoEncoder")
    expected = {"activation_dim": sae.d_in, "dict_size": sae.d_sae}
    found = {key: trainer.get(key) for key in expected}
    if trainer.get("dict_class") not in known:
        return f"dict_class {trainer.get('dict_class')!r} is none of {', '.join(known)}"
    return None if found == expected else f"dictionary_learning says {found}, expected {expected}"


@check("dictionary_learning reconstructs what SAELens does, within 1e-6 of the largest value")
def dictionary_reconstructs_the_same(package: Package) -> str | None:
    if dictionary_config_says_the_same(package):
        raise BlockedError("dictionary_config_says_the_same", "")
    folder, config = package.folder / "dictionary_learning", package.dictionary_config
    _ = package.dictionary_tensors
    return _differs(package, partial(sae_exports.read_dictionary, folder, config), "dictionary_learning")


@check("older/decoder_weights.npy is the SAE's decoder")
def older_decoder_is_the_decoder(package: Package) -> str | None:
    expected = package.sae.W_dec.float().numpy()
    if package.decoder.shape != expected.shape:
        return f"decoder_weights.npy has shape {list(package.decoder.shape)}, expected {list(expected.shape)}"
    return None if np.array_equal(package.decoder, expected) else "decoder_weights.npy has other values"


@check("older/sae_model.safetensors has the SAE's tensors")
def older_weights_are_the_weights(package: Package) -> str | None:
    try:
        found = load_file(package.folder / "older" / "sae_model.safetensors")
    except (SafetensorError, OSError) as error:
        return f"older/sae_model.safetensors: {error}"
    expected = {name: getattr(package.sae, name) for name in package.sae.shapes}
    if found.keys() != expected.keys():
        return f"it has tensors {', '.join(found)}, expected {', '.join(expected)}"
    wrong = [name for name, tensor in expected.items() if not torch.equal(found[name], tensor)]
    return f"other values in {', '.join(wrong)}" if wrong else None


@check("older/neuronpedia_metadata.json says what the manifest says")
def older_metadata_agrees(package: Package) -> str | None:
    found = package.json("older/neuronpedia_metadata.json", "older_metadata_agrees")
    keys = ("model", "hook_point", "variant", "architecture", "d_in", "d_sae", "n_published")
    wrong = [key for key in keys if found.get(key) != package.manifest[key]]
    return f"neuronpedia_metadata.json differs in {', '.join(wrong)}" if wrong else None


@check("older/feature_analysis.json has every latent, in order")
def older_features_are_all_latents(package: Package) -> str | None:
    found = [row.get("feature") for row in package.older_features]
    expected = list(range(package.sae.d_sae))
    return None if found == expected else f"{len(found)} features, expected 0 to {expected[-1]} in this order"


def _differs(package: Package, read: Callable[[], sae_exports.Reconstruct], name: str) -> str | None:
    """What is wrong with reconstructions of inputs of the SAE's own scale."""
    sae = package.sae.to(torch.float32)
    x = sae.b_dec + sae.W_dec.norm(dim=1).mean() * torch.randn(64, sae.d_in, generator=torch.Generator().manual_seed(0))
    try:
        theirs: Tensor = read()(x)
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        return f"{name}: {error}"
    ours = sae(x)
    difference, largest = float((theirs - ours).abs().max()), float(ours.abs().max())
    return None if difference <= TOLERANCE * largest else f"{name} differs by {difference:.2g} of {largest:.2g}"
