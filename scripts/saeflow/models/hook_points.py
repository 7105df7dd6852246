"""Hook points of a language model: what a module gives or takes, recorded or replaced while the model runs.

Most modules give a vector per token as [context, place, d]. Some have places first, and some have all tokens as one
list of rows: which of these a module has is seen, once per model, from two short contexts. A module that runs several
times while the model reads a text stands for the first of these runs.
"""

import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from saeflow.config.language import Hook, no_such_module
from saeflow.models.activation_layouts import CONTEXTS, PLACES, HookPointError, Layout, Parts, layout_of

log = logging.getLogger(__name__)


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
        model: a causal language model.
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
        layouts, found = _layouts(self._model, self._hooks), {}

        def keep(name: str, value: Any) -> None:
            if name in found or _probing.get():
                return
            value = layouts[name].view(Parts.of(value, name).first, name, tokens.shape)
            found[name] = value.flatten(0, 1).index_select(0, rows.to(value.device))
            if len(found) == len(self._hooks):
                raise _Enough

        with ExitStack() as stack:
            for name, hook in self._hooks.items():
                handle = _register(self._modules[name], hook.side, lambda value, name=name: keep(name, value))
                stack.callback(handle.remove)
            try:
                _read(self._model, tokens)
            except _Enough:
                return found
        raise _not_run(name for name in self._hooks if name not in found)


def _read(model: nn.Module, tokens: Int[Tensor, "batch context"]) -> None:
    # Without a cache, transformers looks at numbers to make masks, of which a model on the meta device has none.
    model(tokens, use_cache=tokens.is_meta)


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

    layout, ran = _layouts(model, {name: hook})[name], False

    def begin(*_: Any) -> None:
        nonlocal ran
        ran = ran and _probing.get()

    def change(value: Any) -> Any:
        nonlocal ran
        if ran or _probing.get():
            return None
        ran = True
        parts = Parts.of(value, name)
        old = layout.view(parts.first, name, where.shape)
        mask = where.to(old.device)
        new = old.clone()
        new[mask] = by(old[mask]).to(old.dtype)
        return parts.put(layout.unview(new))

    handles = [model.register_forward_pre_hook(begin), _register(find(model, hook.module), hook.side, change)]
    try:
        yield
    finally:
        for handle in handles:
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
    layout = _layouts(model, {name: hook})[name]
    found: list[Tensor] = []

    def keep(value: Any) -> None:
        if not found and not _probing.get():
            found.append(layout.view(Parts.of(value, name).first, name, shape))
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
        raise _not_run([name])
    return found[0], output


_probing: ContextVar[bool] = ContextVar("probing", default=False)
"""Whether a model runs to show its layouts: hooks that wait for a text of their own let it pass."""
_known: WeakKeyDictionary[nn.Module, dict[tuple[str, str], Layout]] = WeakKeyDictionary()


def _layouts(model: nn.Module, hooks: Mapping[str, Hook]) -> dict[str, Layout]:
    """The layout at each hook point, from two short contexts, and where that is not enough, from another two."""
    known = _known.setdefault(model, {})
    keys = {name: (hook.module, hook.side) for name, hook in hooks.items()}
    new = {name: hook for name, hook in hooks.items() if keys[name] not in known}
    if new:
        embedding = model.get_input_embeddings().weight
        n = CONTEXTS * PLACES
        ids = torch.arange(n + PLACES, device=embedding.device) * len(embedding) // (n + PLACES)
        tokens = ids[:n].view(CONTEXTS, PLACES)
        others: dict[str, Tensor] = {}

        def changed(name: str) -> Tensor:
            if not others:
                others.update(_probe(model, new, torch.stack([tokens[0], ids[n:]])))
            return others[name]

        for name, value in _probe(model, new, tokens).items():
            known[keys[name]] = layout_of(value, lambda name=name: changed(name), name)
    return {name: known[key] for name, key in keys.items()}


@torch.no_grad()
def _probe(model: nn.Module, hooks: Mapping[str, Hook], tokens: Int[Tensor, "batch context"]) -> dict[str, Tensor]:
    """What stands at each hook point in its first run.

    Raises:
        HookPointError: a module that does not run, or gives no tensor.
    """
    found: dict[str, list[Tensor]] = {name: [] for name in hooks}

    def keep(name: str, value: Any) -> None:
        # A copy: what runs behind it may write into it.
        found[name].append(Parts.of(value, name).first.detach().clone() if not found[name] else tokens)

    with ExitStack() as stack:
        stack.callback(_probing.reset, _probing.set(True))
        for name, hook in hooks.items():
            handle = _register(find(model, hook.module), hook.side, lambda value, name=name: keep(name, value))
            stack.callback(handle.remove)
        try:
            _read(model, tokens)
        except HookPointError:
            raise
        except Exception:
            if not all(found.values()):  # what fails behind the hook points is not their fault
                raise
    if silent := [name for name, runs in found.items() if not runs]:
        raise _not_run(silent)
    for name, runs in found.items():
        if len(runs) > 1:
            log.warning("hook point '%s': runs %d times when the model reads a text; the first counts", name, len(runs))
    return {name: runs[0] for name, runs in found.items()}


def _not_run(names: Iterable[str]) -> HookPointError:
    return HookPointError(
        f"hook point {', '.join(names)}: the module does not run when the model reads text, or only on tokens that are "
        "routed to it"
    )


def _register(module: nn.Module, side: str, use: Callable[[Any], Any]):
    """Call `use` with what passes; what it returns, if anything, goes on in its place."""
    if side == "output":
        return module.register_forward_hook(lambda _module, _inputs, output: use(output))

    wanted = list(inspect.signature(module.forward).parameters)

    def before(_module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        if args:
            new = use(args[0])
            return None if new is None else ((new, *args[1:]), kwargs)
        name = next((name for name in wanted if name in kwargs), next(iter(kwargs), None))
        new = use(kwargs.get(name))
        return None if new is None else (args, kwargs | {name: new})

    return module.register_forward_pre_hook(before, with_kwargs=True)
