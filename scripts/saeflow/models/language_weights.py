"""Whether the weights of a folder are those of its model, every one: what is missing, transformers draws at random."""

import contextlib
import re
from collections.abc import Collection, Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch import nn

from saeflow.models.language_files import some

# A constant of old attention masks, which transformers computes now.
_OLD_MASK = re.compile(r"\.masked_bias$")


def problem(
    model: nn.Module, found: Mapping[str, Collection[Any]], config: Any, is_placed: bool, whole: Collection[str] = ()
) -> str | None:
    """What is wrong with weights as they were loaded, in words that name them; None if nothing is.

    Arguments:
        model: as transformers loaded it.
        found: its `output_loading_info`. Tied weights, and those that a class ignores on purpose, are not in it.
        config: of the folder, which may be that of a larger model, of which this is the part that reads text.
        is_placed: whether accelerate placed the weights, some perhaps on the disk, where they are meta tensors.
        whole: names of tensors that are whole numbers in the files.
    """
    missing = sorted(found["missing_keys"])
    unexpected = sorted(set(found["unexpected_keys"]) - set(_unused(model, found["unexpected_keys"], config)))
    sizes = [
        f"{name} ({list(theirs)} in the files, {list(own)} by config.json)"
        for name, theirs, own in sorted(found["mismatched_keys"], key=str)
    ]
    if not is_placed and not missing:
        tensors = chain(model.named_parameters(), model.named_buffers())
        missing = sorted(name for name, tensor in tensors if tensor.is_meta)
    parts = (("missing", missing), ("not the model's", unexpected), ("of another size", sizes))
    if not (said := [f"{what}: {some(names)}" for what, names in parts if names]):
        return _no_numbers(model, whole, config)
    wrapper = _wrapper(missing, unexpected)
    advice = (
        f"names begin with '{wrapper}', as those of a model in a wrapper: save the model inside it"
        if wrapper
        else "config.json and weights are of two models, or some are lacking: save or download all files again"
    )
    return f"its weights are not those of {type(model).__name__} ({'; '.join(said)}); {advice}"


def _no_numbers(model: nn.Module, whole: Collection[str], config: Any) -> str | None:
    """What is wrong with the values of weights that are all there, if anything is."""
    own = {name: tensor for name, tensor in model.named_parameters() if tensor.is_floating_point()}
    if (codes := sorted(name for name in whole if _is_end(name, own))) and not _is_quantized(config):
        return (
            f"weights are whole numbers: {some(codes)}; they are codes of a quantisation, and config.json names none "
            "that transformers has: save the model in bfloat16 or float32"
        )
    # A sum is finite if all its terms are, but for numbers that no weight has.
    values = {name: tensor for name, tensor in own.items() if not tensor.is_meta and tensor.element_size() > 1}
    if broken := [name for name, tensor in values.items() if not bool(tensor.sum(dtype=torch.float64).isfinite())]:
        kinds = ", ".join(sorted({str(own[name].dtype).removeprefix("torch.") for name in broken}))
        return (
            f"weights have values that are no finite numbers in {kinds}: {some(broken)}; set another dtype for this "
            "model, or take one whose training did not diverge"
        )
    return None


def _is_quantized(config: Any) -> bool:
    """Whether transformers makes weights of the codes in the files."""
    from transformers.quantizers import AutoHfQuantizer

    quantization = getattr(config, "quantization_config", None)
    return quantization is not None and AutoHfQuantizer.supports_quant_method(quantization)


def _unused(model: nn.Module, names: Collection[str], config: Any) -> Iterator[str]:
    """Names of weights that the text model rightly does not have."""
    if not names:
        return
    buffers = [name for name, _ in model.named_buffers()]
    parts, ahead = _of_other_parts(model, config), _prediction_heads(model)
    for name in names:
        # Files of older versions hold what is computed from the configuration now.
        is_computed = _is_end(name, buffers) or _OLD_MASK.search(name)
        if is_computed or _is_end(name, parts) or (ahead and ahead.search(name)):
            yield name


def _is_end(name: str, of: Collection[str]) -> bool:
    return any(whole == name or whole.endswith(f".{name}") for whole in of)


def _of_other_parts(model: nn.Module, config: Any) -> Collection[str]:
    """Weights of the larger model that the folder holds: of its vision, say, or of a head that judges texts.

    An encoder is no such part: a decoder without the one that it was trained with is another model.
    """
    import transformers

    architectures = getattr(config, "architectures", None) or ("",)
    whole = getattr(transformers, str(architectures[0]), type(model))
    if whole is type(model) or config.is_encoder_decoder:
        return ()
    with contextlib.suppress(Exception), torch.device("meta"):  # a class that wants more than a configuration
        return whole(config).state_dict()
    return ()


def _prediction_heads(model: nn.Module) -> re.Pattern[str] | None:
    """Layers behind the last, of heads that predict several tokens ahead: in the files of some, in no model."""
    config = model.config.get_text_config(decoder=True)
    n, first = getattr(config, "num_nextn_predict_layers", None), getattr(config, "num_hidden_layers", None)
    if not n or not first:
        return None
    return re.compile(rf"(^|\.)layers\.({'|'.join(str(first + i) for i in range(n))})\.")


def _wrapper(missing: Collection[str], unexpected: Collection[str]) -> str | None:
    """What stands in front of every missing weight's name in the files, if something does."""
    own, first = set(unexpected), next(iter(missing), None)
    for name in unexpected if first else ():
        prefix = name.removesuffix(first)
        if prefix != name and all(prefix + wanted in own for wanted in missing):
            return prefix
    return None
