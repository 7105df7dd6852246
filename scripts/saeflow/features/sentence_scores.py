"""What SAEs' features and the dense activations say about whole sentences, from one pass of a language model."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse import csr_array, vstack
from torch import nn

from saeflow.config.language import Hook
from saeflow.models.hook_points import Recorder
from saeflow.models.language import Tokens, input_device
from saeflow.sae.architectures import SparseAutoencoder


def with_random_weights(sae: SparseAutoencoder, seed: int) -> SparseAutoencoder:
    """The SAE with encoder columns of random directions and the same lengths: the control of the concept tests."""
    noise = torch.randn(sae.W_enc.shape, generator=torch.Generator().manual_seed(seed)).to(sae.W_enc)
    return sae.replace(W_enc=noise / noise.norm(dim=0) * sae.W_enc.norm(dim=0))


@torch.no_grad()
def sentence_scores(
    model: nn.Module,
    tokens: Tokens,
    hook: Hook,
    sentences: Sequence[str],
    saes: Sequence[SparseAutoencoder],
    *,
    batch_size: int = 32,
) -> tuple[list[csr_array], Float[np.ndarray, "n d_in"]]:
    """Highest activation of every feature, and mean of the dense activations, over the tokens of each sentence.

    A sentence begins with the start token, where the tokenizer has one. The first token is left out, as everywhere, and
    so are special tokens: their activations have another norm.

    Arguments:
        saes: on the activations of the hook point; on the device that they are to compute on.
    Returns:
        for each SAE features [n, d_sae], sparse; activations [n, d_in].
    Raises:
        HookPointError: no such module.
        ValueError: a sentence without text, or activations of another width than an SAE's.
    """
    record = Recorder(model, {hook.name: hook})
    highest: list[list[csr_array]] = [[] for _ in saes]
    means = []
    for first in range(0, len(sentences), batch_size):
        batch = list(sentences[first : first + batch_size])
        ids = tokens.with_start(batch)
        # Padded on the right, where a causal model does not look.
        padded = torch.zeros(len(ids), max(map(len, ids)), dtype=torch.long)
        is_text = torch.zeros(padded.shape, dtype=torch.bool)
        for row, own in enumerate(ids):
            padded[row, : len(own)] = torch.tensor(own)
            is_text[row, 1 : len(own)] = torch.tensor([i not in tokens.special for i in own[1:]])
        lengths = is_text.sum(1)
        if not lengths.all():
            raise ValueError(f"sentence {batch[int(lengths.argmin())]!r} has no token of text behind the first")
        rows = is_text.flatten().nonzero()[:, 0]
        x = record(padded.to(input_device(model)), rows)[hook.name]
        for sae, found in zip(saes, highest, strict=True):
            if x.shape[1] != sae.d_in:
                raise ValueError(f"{hook.name}: activations of width {x.shape[1]}, but the SAE is of width {sae.d_in}")
            for own in x.to(sae.device, sae.dtype).split(lengths.tolist()):
                found.append(csr_array(sae.encode(own).amax(0).float().cpu().numpy()[None]))
        means += [own.float().mean(0).cpu().numpy() for own in x.split(lengths.tolist())]
    return [vstack(found, format="csr") for found in highest], np.stack(means)
