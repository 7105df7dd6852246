"""Hook points of a language model: what a module gives or takes, recorded or replaced while the model runs."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from saeflow.config_language import Hook, no_such_module


class HookPointError(ValueError):
    """A hook point that the model does not have, or that gives no activations; names it and what would be right."""


Rows = Callable[[Float[Tensor, "n d"]], Float[Tensor, "n d"]]


def find(model: nn.Module, path: str) -> nn.Module:
    """The module at a path.

    Raises:
        HookPointError: there is none; lists the nearest paths.
    """
    modules = dict(model.named_modules())
    if path in modules:
        return modules[path]
    raise HookPointError(f"hook point {no_such_module(path, filter(None, modules))}")


class Recorder:
    """Runs a model up to the last of some hook points and gives their activations; nothing behind them is computed.

    Arguments:
        model: any module whose forward takes token ids.
        hooks: by name.
    Raises:
        HookPointError: a module that the model does not have.
    """

    def __init__(self, model: nn.Module, hooks: Mapping[str, Hook]) -> None:
        self._model = model
        self._hooks = dict(hooks)
        self._modules = {name: find(model, hook.module) for name, hook in hooks.items()}

    @torch.no_grad()
    def __call__(
        self, tokens: Int[Tensor, "batch context"], rows: Int[Tensor, " n"]
    ) -> dict[str, Float[Tensor, "n _"]]:
        """Activations of some tokens.

        Arguments:
            tokens: ids, on the device of the model's embedding.
            rows: which tokens, counted over contexts and places.
        Returns:
            by hook point, copies, on the device of its module.
        Raises:
            HookPointError: a module that does not run, or gives no vector per token.
        """
        found: dict[str, Tensor] = {}

        def keep(name: str, value: Any) -> None:
            if name in found:  # a module that runs several times counts once
                return
            value = activations_in(value, name, tokens.shape)
            found[name] = value.flatten(0, 1).index_select(0, rows.to(value.device))
            if len(found) == len(self._hooks):
                raise _Enough

        with ExitStack() as stack:
            for name, hook in self._hooks.items():
                handle = _register(self._modules[name], hook.side, lambda value, name=name: keep(name, value))
                stack.callback(handle.remove)
            try:
                self._model(tokens)
            except _Enough:
                return found
        missing = ", ".join(name for name in self._hooks if name not in found)
        raise HookPointError(f"hook point {missing}: the module does not run when the model reads text")


class _Enough(Exception):  # noqa: N818
    """All hook points are there."""


@contextmanager
def replaced(model: nn.Module, name: str, hook: Hook, where: Bool[Tensor, "batch context"], by: Rows) -> Iterator[None]:
    """Inside, the activations at a hook point are replaced for some tokens.

    Arguments:
        model: which is run inside.
        name, hook: the hook point.
        where: tokens whose activations are replaced.
        by: what makes of the activations [n, d] of these tokens the ones that take their place.
    Raises:
        HookPointError: see `Recorder`.
    """

    def change(value: Any) -> Any:
        old = activations_in(value, name, where.shape)
        mask = where.to(old.device)
        new = old.clone()
        new[mask] = by(old[mask]).to(old.dtype)
        return new if isinstance(value, Tensor) else (new, *value[1:])

    handle = _register(find(model, hook.module), hook.side, change)
    try:
        yield
    finally:
        handle.remove()


def activations_at(
    model: nn.Module, name: str, hook: Hook, *, onward: bool = False, **inputs: Tensor
) -> tuple[Float[Tensor, "batch context d"], Any]:
    """Activations of all tokens at a hook point, through which gradients flow.

    Arguments:
        model: a causal language model.
        name, hook: the hook point.
        onward: whether the model runs on to its end; if not, nothing behind the hook point is computed.
        inputs: one of `input_ids` and `inputs_embeds`.
    Returns:
        activations, and what the model returns, None if it did not run on.
    Raises:
        HookPointError: see `Recorder`.
    """
    shape = next(iter(inputs.values())).shape[:2]
    found: list[Tensor] = []

    def keep(value: Any) -> None:
        if not found:
            found.append(activations_in(value, name, shape))
            if not onward:
                raise _Enough

    handle = _register(find(model, hook.module), hook.side, keep)
    try:
        output = model(**inputs, use_cache=False)
    except _Enough:
        output = None
    finally:
        handle.remove()
    if not found:
        raise HookPointError(f"hook point {name}: the module does not run when the model reads text")
    return found[0], output


def activations_in(value: Any, name: str, shape: tuple[int, int]) -> Float[Tensor, "batch context d"]:
    """The activations in what a module gives or takes: itself, or the first of several."""
    first = value if isinstance(value, Tensor) else value[0] if isinstance(value, tuple) and value else None
    if not isinstance(first, Tensor) or first.ndim != 3 or tuple(first.shape[:2]) != tuple(shape):
        found = list(first.shape) if isinstance(first, Tensor) else type(value).__name__
        raise HookPointError(f"hook point '{name}': has {found}, expected a vector per token, {[*shape, 'd']}")
    return first


def _register(module: nn.Module, side: str, use: Callable[[Any], Any]):
    """Call `use` with what passes; what it returns, if anything, goes on in its place."""
    if side == "output":
        return module.register_forward_hook(lambda _module, _inputs, output: use(output))

    def before(_module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        if args:
            new = use(args)
            return None if new is None else (new, kwargs)
        name = next(iter(kwargs), None)
        new = use(kwargs.get(name))
        return None if new is None else (args, kwargs | {name: new})

    return module.register_forward_pre_hook(before, with_kwargs=True)
