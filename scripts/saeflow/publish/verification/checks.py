"""How checks are made and run."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from saeflow.publish.verification.opened import BlockedError, Package

Outcome = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True)
class Check:
    """One thing that a package must be; its function returns what is wrong, or nothing."""

    name: str
    says: str
    find: Callable[[Package], str | None]


@dataclass(frozen=True)
class Result:
    """What one check found."""

    name: str
    says: str
    outcome: Outcome
    problem: str = ""


CHECKS: list[Check] = []


def check(says: str) -> Callable[[Callable[[Package], str | None]], Callable[[Package], str | None]]:
    """Register a function as the check of its own name.

    Arguments:
        says: what holds when it passes.
    """

    def register(find: Callable[[Package], str | None]) -> Callable[[Package], str | None]:
        CHECKS.append(Check(find.__name__, says, find))
        return find

    return register


def verify(folder: Path) -> list[Result]:
    """Run every check on a package; one that needs what another check found broken is skipped.

    Raises:
        FileNotFoundError: no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such package; `snakemake packages` builds those of a study")
    return list(_results(Package(folder)))


def _results(package: Package) -> Iterator[Result]:
    for one in CHECKS:
        try:
            problem = one.find(package)
        except BlockedError as blocked:
            if blocked.check == one.name:
                yield Result(one.name, one.says, "failed", str(blocked))
            else:
                why = f"needs {blocked.check}" if blocked.check else str(blocked)
                yield Result(one.name, one.says, "skipped", why)
            continue
        yield Result(one.name, one.says, "failed" if problem else "passed", problem or "")
