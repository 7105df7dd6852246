"""What a language model makes its logits of: the unembedding, and what the model does with what that gives."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from saeflow.models.module_maps import ROUNDED, deviation, random_signs

_PROBES = 8


class ReadoutError(ValueError):
    """A model whose logits are no linear function of what its unembedding reads; says why."""


@dataclass(frozen=True)
class Readout:
    """Logits as a linear function of what the unembedding reads, in float32.

    A number by which the model multiplies all logits is multiplied in. A cap is left out, which bends large logits and
    leaves small ones as they are.

    Arguments:
        matrix: Shape [vocabulary, d].
        bias: Shape [vocabulary].
    """

    matrix: Float[Tensor, "vocabulary d"]
    bias: Float[Tensor, " vocabulary"]


def unembedding(model: nn.Module) -> tuple[str, nn.Module]:
    """Path of the module that a model has for its unembedding, and the module.

    Raises:
        ReadoutError: none, or one without a matrix.
    """
    head = model.get_output_embeddings()
    weight = getattr(head, "weight", None)
    found = next((path for path, module in model.named_modules() if module is head), None)
    if found is None or not isinstance(weight, Tensor) or weight.ndim != 2:
        raise ReadoutError("the model has no matrix for an unembedding")
    return found, head


def logits(model: nn.Module, h: Float[Tensor, "n d"]) -> Float[Tensor, "n vocabulary"]:
    """The model's own logits, as it scales and caps them, of vectors that its unembedding reads.

    Raises:
        ReadoutError: see `unembedding`; or logits that are not one vector for each of these.
    """
    head = unembedding(model)[1]
    given = h[None].to(head.weight.device, head.weight.dtype)
    hook = head.register_forward_pre_hook(lambda _module, _args, _kwargs: ((given,), {}), with_kwargs=True)
    return _run_with(hook, model, len(h))


@torch.no_grad()
def linear(model: nn.Module) -> Readout:
    """See there.

    Raises:
        ReadoutError: says what is not linear.
    """
    head = unembedding(model)[1]
    matrix = head.weight.to(torch.float32, copy=True)
    zero, x = torch.zeros_like(head.weight[:1]), random_signs((_PROBES, matrix.shape[1])).to(head.weight)
    bias, given = (head(value[None])[0].float() for value in (zero, x))
    if deviation(x.float() @ matrix.T, given - bias) > ROUNDED:
        raise ReadoutError("the unembedding does more than multiply by its matrix and add a bias")
    # Of a size at which caps, of 15 and more, do not yet bend.
    z = random_signs((_PROBES, len(matrix))).to(head.weight) / 2

    def after(values: Tensor) -> Tensor:
        return _run_with(head.register_forward_hook(lambda *_: values[None]), model, len(values)).float()

    up, down = after(z), after(-z)
    z = z[:, : up.shape[1]].to(up)  # some models have rows of no token, and cut them off
    odd, even = (up - down) / 2, (up + down) / 2
    factor = float((odd * z).sum() / z.square().sum())
    is_constant = (even - even[:1]).norm() <= ROUNDED * z.norm()
    if factor <= 0 or deviation(factor * z, odd) > ROUNDED or not is_constant:
        raise ReadoutError("the model does more with its logits than scale and cap them")
    n = up.shape[1]
    return Readout(matrix[:n].mul_(factor), factor * bias[0, :n] + even[0].to(bias))


@torch.no_grad()
def _run_with(hook: RemovableHandle, model: nn.Module, n: int) -> Float[Tensor, "n vocabulary"]:
    """Logits of a run on one token, in which a hook puts n vectors in the place of one; the hook goes."""
    token = torch.zeros(1, 1, dtype=torch.long, device=model.get_input_embeddings().weight.device)
    try:
        found = model(token, use_cache=False).logits
    finally:
        hook.remove()
    if found.ndim != 3 or found.shape[:2] != (1, n):
        raise ReadoutError("the model makes no logits of single vectors")
    return found[0]
