"""Where in what a module gives or takes the vector of each token stands, and how another takes its place."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Self

from jaxtyping import Float
from torch import Tensor

CONTEXTS, PLACES = 2, 3
"""Contexts that tell layouts apart, and tokens of each: two numbers that differ."""


class HookPointError(ValueError):
    """A hook point that the model does not have, or that gives no activations; names it and what would be right."""


@dataclass(frozen=True)
class Parts:
    """What a module gives or takes: activations, and perhaps more beside them.

    Arguments:
        first: the activations.
        put: what the module would give with other activations.
    """

    first: Tensor
    put: Callable[[Tensor], Any]

    @classmethod
    def of(cls, value: Any, name: str) -> Self:
        """A tensor, or the first of several in a tuple, a list, a dict or one of transformers' outputs.

        Raises:
            HookPointError: no tensor of numbers with a fraction.
        """
        if isinstance(value, Tensor):
            found = cls(value, lambda new: new)
        elif isinstance(value, Mapping) and value:
            key = next(iter(value))

            def put_under_key(new: Tensor) -> Any:
                changed = copy.copy(value)
                changed[key] = new
                return changed

            found = cls(value[key], put_under_key)
        elif isinstance(value, tuple) and hasattr(value, "_replace"):
            found = cls(value[0], lambda new: value._replace(**{value._fields[0]: new}))
        elif isinstance(value, (tuple, list)) and value:
            found = cls(value[0], lambda new: type(value)([new, *value[1:]]))
        else:
            raise HookPointError(f"hook point '{name}': has {type(value).__name__}, expected a vector per token")
        if not isinstance(found.first, Tensor):
            what = f"has {type(found.first).__name__} in the first place of what it gives"
            raise HookPointError(f"hook point '{name}': {what}, expected a vector per token")
        if not found.first.is_floating_point():
            kind = str(found.first.dtype).removeprefix("torch.")
            raise HookPointError(f"hook point '{name}': has numbers of type {kind}, expected a vector per token")
        return found


class Layout(Enum):
    """Order of the axes of activations."""

    CONTEXT_PLACE = "[context, place, d]"
    PLACE_CONTEXT = "[place, context, d]"
    ROWS_OF_CONTEXTS = "[context * place, d]"
    ROWS_OF_PLACES = "[place * context, d]"

    def view(self, tensor: Tensor, name: str, shape: tuple[int, int]) -> Float[Tensor, "context place d"]:
        """Activations by context and place.

        Arguments:
            shape: contexts, and places of each.
        Raises:
            HookPointError: they are not of this layout.
        """
        n_contexts, n_places = shape
        expected = {
            Layout.CONTEXT_PLACE: (n_contexts, n_places),
            Layout.PLACE_CONTEXT: (n_places, n_contexts),
        }.get(self, (n_contexts * n_places,))
        if tensor.ndim != len(expected) + 1 or tuple(tensor.shape[:-1]) != expected:
            raise mismatch(tensor, name, shape)
        if self is Layout.CONTEXT_PLACE:
            return tensor
        if self is Layout.PLACE_CONTEXT:
            return tensor.transpose(0, 1)
        if self is Layout.ROWS_OF_CONTEXTS:
            return tensor.unflatten(0, (n_contexts, n_places))
        return tensor.unflatten(0, (n_places, n_contexts)).transpose(0, 1)

    def unview(self, activations: Float[Tensor, "context place d"]) -> Tensor:
        """What `view` was taken of, with these activations."""
        if self in (Layout.PLACE_CONTEXT, Layout.ROWS_OF_PLACES):
            activations = activations.transpose(0, 1)
        return activations if self in (Layout.CONTEXT_PLACE, Layout.PLACE_CONTEXT) else activations.flatten(0, 1)


def mismatch(tensor: Tensor, name: str, shape: tuple[int, int]) -> HookPointError:
    """What to say of a tensor that has no vector per token."""
    n_contexts, n_places = shape
    said = f"hook point '{name}': has {list(tensor.shape)}, expected a vector per token, {[n_contexts, n_places, 'd']}"
    n = n_contexts * n_places
    if tensor.ndim == 2 and tensor.shape[0] < n:
        said += f" or {[n, 'd']}; a module that reads only the tokens routed to it has none for the others"
    return HookPointError(said)


def layout_of(tensor: Tensor, changed: Callable[[], Tensor], name: str) -> Layout:
    """The layout of a module's activations.

    Arguments:
        tensor: from CONTEXTS contexts of PLACES tokens.
        changed: gives the same after every token of the second context changed.
    Raises:
        HookPointError: no vector per token, or none of known order.
    """
    shape = (CONTEXTS, PLACES)
    if tensor.ndim == 3 and tuple(tensor.shape[:2]) == shape:
        return Layout.CONTEXT_PLACE
    if tensor.ndim == 3 and tuple(tensor.shape[:2]) == shape[::-1]:
        return Layout.PLACE_CONTEXT
    if tensor.ndim != 2 or tensor.shape[0] != CONTEXTS * PLACES:
        raise mismatch(tensor, name, shape)
    if tensor.is_meta:
        return Layout.ROWS_OF_CONTEXTS
    other = changed()
    if other.shape == tensor.shape:
        moved = (other - tensor).float().abs().amax(1)
        for layout in (Layout.ROWS_OF_CONTEXTS, Layout.ROWS_OF_PLACES):
            first, second = layout.view(moved[:, None], name, shape)[..., 0]
            # Rounding may move rows of the first context as well: experts get tokens in groups.
            if second.min() > 10 * first.max():
                return layout
    raise HookPointError(
        f"hook point '{name}': has {list(tensor.shape)} for {CONTEXTS} contexts of {PLACES} tokens, and its rows are "
        "not in the tokens' order"
    )
