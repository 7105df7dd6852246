"""What SAEs do to a language model: cross-entropy with reconstructions in place of activations.

Replaced are the activations of text tokens. Special tokens and the first token of each context keep theirs: their norm
is far from that of all others, no SAE is trained on them, and the model leans on them.
"""

from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saeflow.config.language import Hook
from saeflow.datasets.contexts import Contexts
from saeflow.models.hook_points import Rows, replaced
from saeflow.models.language import input_device, loss_sum
from saeflow.sae.architectures import SparseAutoencoder
from saeflow.sae.metrics import ce_recovered

CLEAN, ZERO, MEAN = "clean", "zero", "mean"


def reconstruction(sae: SparseAutoencoder) -> Rows:
    """What stands in for activations with the SAE spliced in."""

    def by(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        return sae(x.to(sae.device, sae.dtype)).to(x.device)

    return by


def ablations(mean: Float[Tensor, " d"]) -> dict[str, Rows]:
    """Zero in place of every activation, or the mean activation."""
    return {ZERO: torch.zeros_like, MEAN: lambda x: mean.to(x).expand_as(x)}


@torch.no_grad()
def cross_entropies(
    model: nn.Module, contexts: Iterable[Contexts], name: str, hook: Hook, replacements: Mapping[str, Rows]
) -> dict[str, float]:
    """Cross-entropy of predictions of text tokens, nats per token, under each replacement and `clean`.

    Arguments:
        model: as `saeflow.models.language.load` gives it.
        contexts: batches of contexts.
        name, hook: the hook point.
        replacements: what takes the place of activations, by name.
    Raises:
        ValueError: no text token, or a loss that is not finite.
    """
    sums, n, device = dict.fromkeys((CLEAN, *replacements), 0.0), 0, input_device(model)
    for batch in contexts:
        tokens, is_text = torch.from_numpy(batch.tokens).to(device), torch.from_numpy(batch.is_text)
        loss, count = loss_sum(model, tokens, is_text)
        sums[CLEAN] += float(loss)
        n += count
        for key, by in replacements.items():
            with replaced(model, name, hook, is_text, by):
                sums[key] += float(loss_sum(model, tokens, is_text)[0])
    if not n:
        raise ValueError("cross-entropy: no text token to predict")
    found = {key: value / n for key, value in sums.items()}
    for key, value in found.items():
        if value != value or value == float("inf"):
            raise ValueError(f"hook point '{name}': cross-entropy ({key}) is {value}; load the model in float32")
    return found


def recovered(ce: Mapping[str, float], key: str) -> dict[str, float | None]:
    """Columns of an SAE from `cross_entropies`: the four losses, and what is recovered against either ablation.

    None stands where an ablation costs nothing, so that there is nothing to recover.
    """
    columns: dict[str, float | None] = {
        "ce_clean": ce[CLEAN],
        "ce_sae": ce[key],
        "ce_zero": ce[ZERO],
        "ce_mean": ce[MEAN],
    }
    for kind in (ZERO, MEAN):
        costs = ce[kind] > ce[CLEAN]
        columns[f"ce_recovered_{kind}"] = ce_recovered(ce[CLEAN], ce[key], ce[kind]) if costs else None
    return columns
