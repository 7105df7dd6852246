"""The direct path from a hook point to a language model's logits: what is added, scaled and normalised on the way.

The residual stream is a sum: what stands in it reaches the unembedding by addition, beside what later blocks make of
it. Nothing here is taken from names of classes or tensors. The model reads a few tokens; gradients that pass only the
operations that hand them on, times one number, show which values are terms of which sum; and a module that lies between
two sums is measured.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from saeflow.config.language import Hook
from saeflow.models import module_maps, readout
from saeflow.models.hook_points import find
from saeflow.models.module_maps import ROUNDED, deviation

_TOKENS = 6


class DirectPathError(ValueError):
    """What stands at a hook point does not reach the logits by sums, numbers and normalisations alone; says why."""


@dataclass(frozen=True)
class _Value:
    """What a module took or gave, and its place in the graph."""

    tensor: Tensor
    edge: GradientEdge

    @classmethod
    def of(cls, value: Any) -> "_Value | None":
        while isinstance(value, tuple | list | Mapping) and value:
            value = next(iter(value.values() if isinstance(value, Mapping) else value))
        if not isinstance(value, Tensor) or not value.requires_grad:
            return None
        return cls(value.detach(), get_gradient_edge(value))


@dataclass(frozen=True)
class _Call:
    """A run of a module.

    Arguments:
        taken, given: none where it is no vector that the model made.
        n_taken: how many tensors it took.
    """

    name: str
    module: nn.Module
    taken: _Value | None
    n_taken: int
    given: _Value | None


def rows(model: nn.Module, hook: Hook | None = None) -> Float[Tensor, "vocabulary d"]:
    """The linear map from a hook point to the logits along the direct path.

    Two things are left out, which belong to the whole vector: its length, by which normalisations divide, and what a
    cap on logits does to large ones.

    Arguments:
        model: a causal language model.
        hook: in the residual stream; the output of the last block if not given.
    Returns:
        in float32, on the device of the unembedding.
    Raises:
        DirectPathError: says what lies between.
        HookPointError: a module that the model does not have.
    """
    try:
        found, (_, head) = readout.linear(model).matrix, readout.unembedding(model)
        calls, logits = _run(model)
        target = _target(model, calls, hook)
        place = next((call.taken for call in reversed(calls) if call.module is head), None)
        if place is None or place.tensor.shape[:-1] != logits.shape[:-1]:
            raise DirectPathError("the unembedding does not read one vector for each token")
        if deviation(readout.logits(model, place.tensor[0]).float(), logits[0].float()) > ROUNDED:
            raise DirectPathError("the model makes its logits of more than what its unembedding reads")
        with _straight(place.edge.node):
            normalised_by = ""
            while not (factor := _factors(place, [target])[0]):
                made_by, times = _producer(place, calls)
                between = module_maps.measure(made_by.module, made_by.taken.tensor, made_by.given.tensor)
                if between is None:
                    raise DirectPathError(f"{made_by.name} lies between, which is neither linear nor a normalisation")
                if isinstance(between, module_maps.Normalisation):
                    if normalised_by:  # the second length depends on the direction
                        raise DirectPathError(f"two normalisations lie between, {made_by.name} and {normalised_by}")
                    normalised_by = made_by.name
                found, place = between.pull_back(found.mul_(times)), made_by.taken
    except readout.ReadoutError as error:
        raise DirectPathError(str(error)) from error
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError) as error:
        raise DirectPathError(f"the model does not run with gradients ({error})") from error
    return found.mul_(factor)


def _run(model: nn.Module) -> tuple[list[_Call], Float[Tensor, "1 n vocabulary"]]:
    """What every module does as the model reads a few tokens, in the order in which they end, and the logits."""
    calls: list[_Call] = []
    waiting: list[tuple[_Value | None, int]] = []

    def before(_module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        values = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor | tuple | list)]
        waiting.append((_Value.of(values[0]) if values else None, len(values)))

    def after(name: str, module: nn.Module, output: Any) -> Tensor | None:
        is_new = isinstance(output, Tensor) and output.is_floating_point() and not output.requires_grad
        if is_new:  # no weight needs a gradient, so the graph begins with what the first modules give
            output = output.detach().requires_grad_().clone()
        calls.append(_Call(name, module, *waiting.pop(), _Value.of(output)))
        return output if is_new else None

    embedding = model.get_input_embeddings().weight
    spread = torch.arange(1, _TOKENS + 1, device=embedding.device) * max(1, len(embedding) // (_TOKENS + 1))
    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        for name, module in model.named_modules():
            stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            handle = module.register_forward_hook(lambda m, _inputs, output, name=name: after(name, m, output))
            stack.callback(handle.remove)
        logits = model(spread[None] % len(embedding), use_cache=False).logits
    return calls, logits.detach()


def _target(model: nn.Module, calls: Sequence[_Call], hook: Hook | None) -> _Value:
    """What stands at a hook point; of a module that runs several times in its first run, which is what is recorded."""
    if hook is None:
        lists = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
        outer = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
        blocks = [call for call in calls if call.name.rpartition(".")[0] in outer and call.given is not None]
        if not blocks:
            raise DirectPathError("the model has no list of blocks")
        hook = Hook(module=blocks[-1].name)
    find(model, hook.module)
    first = next((call for call in calls if call.name == hook.module), None)
    value = first and (first.given if hook.side == "output" else first.taken)
    if value is None:
        raise DirectPathError("no vectors that the model made pass there")
    return value


def _producer(place: _Value, calls: Sequence[_Call]) -> tuple[_Call, float]:
    """The one module that what is at a place comes out of, and the number that is multiplied with what it gives.

    Raises:
        DirectPathError: it is a sum of what several give, or the making of none.
    """
    given, taken = (_factors(place, [getattr(call, side) for call in calls]) for side in ("given", "taken"))
    makers = [(call, out) for call, out, into in zip(calls, given, taken, strict=True) if out and not into]
    inner = [
        (call, out) for call, out in makers if not any(other.name.startswith(f"{call.name}.") for other, _ in makers)
    ]
    names = [call.name for call, _ in inner]
    if len(inner) > 1:
        raise DirectPathError(f"it is none of the terms that are added up ({', '.join(names[:3])}, …)")
    if not inner:
        raise DirectPathError("something that no module gives lies between")
    if inner[0][0].taken is None or inner[0][0].n_taken > 1:
        raise DirectPathError(f"{names[0]} lies between, which is no function of one vector")
    return inner[0]


def _factors(place: _Value, values: Sequence[_Value | None]) -> list[float]:
    """How many times each value is in the sum that is at a place; 0 for what is none of its terms. In `_straight`."""
    signs = module_maps.random_signs(tuple(place.tensor.shape)).to(place.tensor)
    edges = [value.edge for value in values if value is not None]
    gradients = iter(torch.autograd.grad(place.edge, edges, signs, retain_graph=True, allow_unused=True))
    found = [None if value is None else next(gradients) for value in values]
    return [0.0 if gradient is None else _factor(gradient, signs) for gradient in found]


def _factor(a: Tensor, b: Tensor) -> float:
    """How many times a is b, all of whose numbers have one size; 0 where it is no multiple."""
    if a.numel() != b.numel():
        return 0.0
    a, b = a.flatten().to(b.device).float(), b.flatten().float()
    return float(a[0] / b[0]) if a[0] != 0 and torch.equal(a / a[0], b / b[0]) else 0.0


@contextmanager
def _straight(root: Node) -> Iterator[None]:
    """Inside, gradients pass only operations that hand them on, times one number: sums, scales, casts, views."""

    def keep(gradients: tuple[Tensor | None, ...], behind: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        if len(behind) != 1 or behind[0] is None:
            return (None,) * len(gradients)
        return tuple(g if g is not None and _factor(g, behind[0]) else None for g in gradients)

    seen: set[Node] = set()
    waiting = [root]
    with ExitStack() as stack:
        while waiting:
            if (node := waiting.pop()) in seen:
                continue
            seen.add(node)
            stack.callback(node.register_hook(keep).remove)
            waiting += [following for following, _ in node.next_functions if following is not None]
        yield
