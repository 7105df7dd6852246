"""The type checker that annotated arrays are held to in tests."""

from typing import Any, Self

from beartype import BeartypeConf, FrozenDict, beartype

# `Self` has a meaning inside a decorated class only, and jaxtyping decorates functions one by one.
check = beartype(conf=BeartypeConf(hint_overrides=FrozenDict({Self: Any}), is_pep484_tower=True))
