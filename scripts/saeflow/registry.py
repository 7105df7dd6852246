"""Kinds of a thing by name: a new kind is a new file, which registers itself."""

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """Kinds by name, in the order of their modules' names.

    A kind whose module has its name is looked up by importing that module alone; all are imported where they are
    listed, or a name is not a module's. `package` is written out, so that `saeflow.library` can read which files belong
    to it.
    """

    def __init__(self, package: str) -> None:
        self._package = package
        self._kinds: dict[str, T] = {}
        self._is_read = False

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator of a kind; raises ValueError where the name is taken."""

        def add(kind: T) -> T:
            if name in self._kinds:
                raise ValueError(f"{self._package}: two kinds are called '{name}'")
            self._kinds[name] = kind
            return kind

        return add

    def _read(self) -> dict[str, T]:
        if not self._is_read:
            self._is_read = True
            package = importlib.import_module(self._package)
            for module in sorted(found.name for found in pkgutil.iter_modules(package.__path__)):
                importlib.import_module(f"{self._package}.{module}")
        return self._kinds

    def __getitem__(self, name: str) -> T:
        if name not in self._kinds and importlib.util.find_spec(f"{self._package}.{name}"):
            importlib.import_module(f"{self._package}.{name}")
        return self._kinds[name] if name in self._kinds else self._read()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())
