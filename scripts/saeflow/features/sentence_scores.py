"""What an SAE's features and the dense activations say about whole sentences, from one pass of a language model."""

import difflib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse import csr_array, vstack
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from saeflow.sae.architectures import SparseAutoencoder


class HookPointError(LookupError):
    """A module that the model does not have; the message names the nearest."""


def with_random_weights(sae: SparseAutoencoder, seed: int) -> SparseAutoencoder:
    """The SAE with encoder columns of random directions and the same lengths: the control of the concept tests."""
    noise = torch.randn(sae.W_enc.shape, generator=torch.Generator().manual_seed(seed)).to(sae.W_enc)
    return sae.replace(W_enc=noise / noise.norm(dim=0) * sae.W_enc.norm(dim=0))


@torch.no_grad()
def sentence_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    module: str,
    sentences: Sequence[str],
    sae: SparseAutoencoder,
    *,
    side: str = "output",
    batch_size: int = 32,
) -> tuple[csr_array, Float[np.ndarray, "n d_in"]]:
    """Highest activation of every feature, and mean of the dense activations, over the tokens of each sentence.

    The start token, where the tokenizer puts one in front, is left out: the norm of its activations is an outlier.

    Arguments:
        module: path of the module as `model.named_modules()` has it.
        sae: trained on that module's output, or input as `side` says.
    Returns:
        features [n, d_sae], sparse; activations [n, d_in].
    Raises:
        HookPointError: no such module.
        ValueError: a sentence without tokens, or activations of another width than the SAE's.
    """
    device = next(model.parameters()).device
    sae = sae.to(device)
    rows, means = [], []
    for start in range(0, len(sentences), batch_size):
        batch = list(sentences[start : start + batch_size])
        ids = [tokenizer(sentence)["input_ids"] for sentence in batch]
        for x, own, sentence in zip(_activations(model, module, side, ids, device), ids, batch, strict=True):
            first = int(tokenizer.bos_token_id is not None and own[:1] == [tokenizer.bos_token_id])
            if len(x) <= first:
                raise ValueError(f"sentence {sentence!r} has no token but the start token")
            if x.shape[1] != sae.d_in:
                raise ValueError(f"{module}: activations of width {x.shape[1]}, but the SAE is of width {sae.d_in}")
            highest = sae.encode(x[first:].to(sae.dtype)).amax(0)
            rows.append(csr_array(highest.float().cpu().numpy()[None]))
            means.append(x[first:].float().mean(0).cpu().numpy())
    return vstack(rows, format="csr"), np.stack(means)


def _activations(
    model: PreTrainedModel, module: str, side: str, ids: Sequence[Sequence[int]], device: torch.device
) -> Iterator[Float[Tensor, "tokens d_in"]]:
    """Activations of each sentence's own tokens; a pass for all, padded on the right."""
    longest = max(map(len, ids))
    padded = torch.zeros(len(ids), longest, dtype=torch.long, device=device)
    mask = torch.zeros_like(padded)
    for row, own in enumerate(ids):
        padded[row, : len(own)] = torch.tensor(own, device=device)
        mask[row, : len(own)] = 1
    captured: list[Tensor] = []

    def keep(_module: nn.Module, inputs: tuple, output: object = None) -> None:
        value = inputs[0] if side == "input" else output
        captured.append(value[0] if isinstance(value, tuple) else value)

    found = _module_of(model, module)
    handle = found.register_forward_pre_hook(keep) if side == "input" else found.register_forward_hook(keep)
    try:
        model(input_ids=padded, attention_mask=mask)
    finally:
        handle.remove()
    for row, own in enumerate(ids):
        yield captured[0][row, : len(own)]


def _module_of(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        names = [name for name, _ in model.named_modules() if name]
        near = difflib.get_close_matches(path, names, n=3, cutoff=0.3) or names[:3]
        raise HookPointError(f"hook point '{path}' is no module of the model; nearest: {', '.join(near)}") from None
