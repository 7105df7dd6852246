"""What every section of a study is made of: closed sections, and the types of numbers, texts and lists.

Every number has a range, beyond which it is a slip of the pen. True and false are no numbers, a number is no text, and
a text in quotes is no number.
"""

import datetime
import os
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Strict
from pydantic_core import PydanticCustomError

from saeflow.strict_yaml import shown

T = TypeVar("T")


class ConfigError(ValueError):
    """A study that cannot be run; the message names each key, its value and what would be right."""


class Section(BaseModel):
    """A part of the study: frozen, and closed to keys that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _whole(value: Any) -> Any:
    """A whole number as such, however it is written: `1e6` and `64.0` are."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def _label(value: Any) -> Any:
    """A class as a key, which JSON has as text."""
    return int(value) if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 4 else value


def whole(lowest: int, highest: int) -> Any:
    """Type of a whole number of a range."""
    return Annotated[int, Strict(), Field(ge=lowest, le=highest), BeforeValidator(_whole, json_schema_input_type=int)]


def number(**limits: float) -> Any:
    """Type of a finite number between limits (`ge`, `gt`, `le`, `lt`)."""
    return Annotated[float, Strict(), Field(allow_inf_nan=False, **limits)]


Switch = Annotated[bool, Strict()]

Count = whole(1, 1_000_000)
CountOrNone = whole(0, 1_000_000)
Steps = whole(1, 100_000_000)
StepsOrNone = whole(0, 100_000_000)
# Latents, units, words; rows of a batch or a chunk.
Width = Rows = whole(1, 2**24)
Tokens = whole(1, 10**12)
Jobs = whole(1, 1000)
Label = whole(0, 999)
LabelAsKey = Annotated[Label, BeforeValidator(_label, json_schema_input_type=int)]
Seed = whole(0, 2**63 - 1)

Share = number(ge=0, le=1)
ShareBelowOne = number(ge=0, lt=1)
# A share that is neither nothing nor the whole.
Part = number(gt=0, lt=1)
Rate = number(ge=1e-12, le=1)
Weight = number(ge=0, le=1e6)
PositiveWeight = number(ge=1e-12, le=1e6)
Dose = number(ge=1e-12, le=1000)


@dataclass(frozen=True)
class Right:
    """What a type takes, in words, where the type itself does not tell."""

    words: str


def written(words: str, pattern: str, longest: int) -> Any:
    """Type of a text that fits a pattern; `words` say what the pattern asks for."""
    return Annotated[str, Field(pattern=pattern, max_length=longest), Right(words)]


# Names become files and folders of the results: no separator, no dot in front, and short enough for every disk.
Name = written("lower-case letters, digits and _, with a letter or digit first", r"^[a-z0-9][a-z0-9_]*$", 64)
Architecture = written("letters and digits, with a letter first", r"^[A-Za-z][A-Za-z0-9]*$", 64)
HookPoint = written("words of letters, digits and _ with dots between them", r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$", 160)
# What is only read may lie anywhere; braces and angle brackets would be Snakemake's wildcards and variables.
PathToRead = written("a path without line breaks, braces and angle brackets", r"^[^\x00-\x1f{}<>]+$", 4095)
# Words of a text or a title.
Line = written("text on one line", r"^[^\x00-\x1f]+$", 200)


def _is_day(value: str) -> str:
    try:
        datetime.date.fromisoformat(value)
    except ValueError:
        raise PydanticCustomError("no_day", "{day} is no day of the calendar", {"day": shown(value)}) from None
    return value


Day = Annotated[written("a day as 2026-01-31", r"^\d{4}-\d{2}-\d{2}$", 10), AfterValidator(_is_day)]


def _refuse_twice(values: Iterable[Any], identities: Iterable[Hashable]) -> None:
    seen: set[Hashable] = set()
    twice: dict[Hashable, Any] = {}
    for value, identity in zip(values, identities, strict=True):
        if identity in seen:
            twice.setdefault(identity, value)
        seen.add(identity)
    if twice:
        names = ", ".join(map(shown, list(twice.values())[:12]))
        raise PydanticCustomError("repeated", "names {names} twice; each entry stands once", {"names": names})


def each_once(values: tuple) -> tuple:
    """The values, none of which may stand twice."""
    _refuse_twice(values, values)
    return values


def each_file_once(values: tuple[str, ...]) -> tuple[str, ...]:
    """The paths, no two of which may lead to one file."""
    _refuse_twice(values, map(os.path.normpath, values))
    return values


# A list is one of the two: of things that are done one by one, or a sequence in which an entry may come again.
Each = Annotated[
    tuple[T, ...], Field(max_length=1000, json_schema_extra={"uniqueItems": True}), AfterValidator(each_once)
]
Files = Annotated[
    tuple[PathToRead, ...],
    Field(max_length=1000, json_schema_extra={"uniqueItems": True}),
    AfterValidator(each_file_once),
]
InOrder = Annotated[tuple[T, ...], Field(max_length=100)]
# Things by name.
Named = Annotated[dict[Name, T], Field(max_length=1000)]
Seeds = Each[Seed]
