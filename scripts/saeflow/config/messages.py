"""What is said of a mistake in a study: the key, its value as the file has it, and what would be right.

What would be right follows from the key's type, so that every key has an answer, and none speaks of Python.
"""

import difflib
from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core.core_schema import ErrorType

from saeflow.config.saes import VARIANTS
from saeflow.config.sections import Right, Section, each_file_once, each_once
from saeflow.strict_yaml import shown

MOST_LINES = 20
LONGEST_LINE = 1200
_OF_PYDANTIC = set(get_args(ErrorType))


def explain(error: ValidationError, study: type[Section]) -> str:
    """A line per mistake, at most so many of them and each of such a length."""
    problems = error.errors(include_url=False)
    # A list of which some entries are wrong also counts as too short.
    above = {problem["loc"][:-1] for problem in problems}
    problems = [one for one in problems if one["type"] != "too_short" or one["loc"] not in above]
    return limited(list(dict.fromkeys(_line(problem, study) for problem in problems)))


def limited(lines: Sequence[str]) -> str:
    """Lines as one text that fits a screen, however many and long they are."""
    more = len(lines) - MOST_LINES
    kept = [line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]} …" for line in lines[:MOST_LINES]]
    return "\n".join(kept + [f"and {more:,} more mistakes"] * (more > 0))


def right(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """What a type takes, in words."""
    if hasattr(annotation, "__metadata__"):
        return right(annotation.__origin__, [*annotation.__metadata__, *metadata])
    if words := next((one.words for one in metadata if isinstance(one, Right)), None):
        return words
    limits = _limits(metadata)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ("one of " if len(arguments) > 1 else "") + ", ".join(map(str, arguments))
    if origin in (UnionType, Union):
        options = [right(option, metadata) for option in arguments if option is not NoneType]
        if all(isinstance(option, type) and issubclass(option, Section) for option in arguments):
            options = ["a section, as `architecture: topk`"]
        return ", or ".join([*options, *["null"] * (NoneType in arguments)])
    if origin is tuple:
        if arguments[-1] is not ...:
            return f"a list of {len(arguments)}, each {right(arguments[0])}"
        least, most = limits.get("min_length", 0), limits["max_length"]
        once = ", none twice" if limits.get("once") else ""
        return f"a list of {least} to {most:,}{once}, each {right(arguments[0])}"
    if origin is dict:
        return f"names of your own, each with {right(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return f"a section, as `{next(iter(annotation.model_fields))}: …`"
    if annotation is str:
        return "text"
    words = {bool: "true or false", int: "a whole number", float: "a number"}
    return words.get(annotation, "something else") + _range(limits)


def _limits(metadata: Sequence[Any]) -> dict[str, Any]:
    """Limits of a type by the name that pydantic has for each; the outermost of a kind counts."""
    found: dict[str, Any] = {}
    for one in metadata:
        if isinstance(one, FieldInfo):
            found |= _limits(one.metadata)
            continue
        names = ("ge", "gt", "le", "lt", "min_length", "max_length")
        found |= {name: getattr(one, name) for name in names if getattr(one, name, None) is not None}
        if getattr(one, "func", None) in (each_once, each_file_once):
            found["once"] = True
    return found


def _range(limits: Mapping[str, Any]) -> str:
    def written(value: float) -> str:
        return f"{int(value):,}" if value == int(value) else f"{value:g}"

    words = {"ge": "from", "gt": "above", "le": "to" if "ge" in limits else "up to", "lt": "below"}
    parts = [f"{word} {written(limits[name])}" for name, word in words.items() if name in limits]
    return " " + ", ".join(parts).replace(", to ", " to ") if parts else ""


def _line(problem: Mapping[str, Any], study: type[Section]) -> str:
    """One mistake in words."""
    location, value = problem["loc"], problem["input"]
    if problem["type"] == "missing" and isinstance(location[-1], int):
        location = location[:-1]  # a list of so many that is too short
    place = _Place(location, study)
    name = ".".join(key if key.isprintable() and len(key) <= 64 else shown(key) for key in place.keys)
    match problem["type"]:
        case "extra_forbidden" | "invalid_key":
            known = list(place.section.model_fields)
            close = difflib.get_close_matches(place.keys[-1][:100], known, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}"
            return f"{name}: {shown(value)} under an unknown key; {hint}"
        case "missing" if place.field and location == problem["loc"]:
            return f"{name}: missing, and it has no default"
        case "union_tag_not_found":
            return f"{name}.architecture: missing; give one of {', '.join(VARIANTS)}"
        case "union_tag_invalid":
            return f"{name}.architecture: {shown(value['architecture'])} is none of {', '.join(VARIANTS)}"
        case "value_error":
            message = problem["msg"].removeprefix("Value error, ")
            return f"{name}.{message}" if name else message
        case kind if kind not in _OF_PYDANTIC:
            return f"{name}: {problem['msg']}"
    wanted = right(place.type, place.metadata)
    if place.is_key:
        return f"{name}: the name is not right; give {wanted}"
    if value is None:
        return f"{name}: nothing is given; give {wanted}"
    if isinstance(value, bool | int | float) and _takes_text(place.type):
        return f"{name}: {shown(value)} is no text, unless it stands in quotes; give {wanted}"
    return f"{name}: {shown(value)} is not right; give {wanted}"


def _takes_text(annotation: Any) -> bool:
    if hasattr(annotation, "__metadata__"):
        return _takes_text(annotation.__origin__)
    if get_origin(annotation) in (UnionType, Union):
        return any(map(_takes_text, get_args(annotation)))
    return annotation is str


class _Place:
    """Where a mistake is.

    Attributes:
        keys: as the file has them.
        section: what the last key stands in.
        type, metadata: what stands there.
        field: whether the last key is one of the section's own.
        is_key: whether the mistake is in the last key itself, not in what is under it.
    """

    def __init__(self, location: tuple[str | int, ...], study: type[Section]) -> None:
        self.section, self.type, self.metadata = study, study, ()
        self.keys: list[str] = []
        self.field = self.is_key = False
        here: Any = study
        for step in location:
            if step == "[key]":
                self.type, self.metadata, self.is_key = get_args(here)[0], (), True
                return
            here = self._inside()
            if get_origin(here) in (UnionType, Union):
                # pydantic puts a union's branch into the path; the file has no such key.
                self.type = VARIANTS.get(step, here) if set(get_args(here)) == set(VARIANTS.values()) else here
                if self.type is here:
                    return
                continue
            self.keys.append(str(step))
            self.field = False
            if isinstance(here, type) and issubclass(here, Section):
                self.section = here
                field = here.model_fields.get(step)
                self.field = field is not None
                self.type, self.metadata = (field.annotation, field.metadata) if field else (None, ())
            elif get_origin(here) in (dict, tuple):
                arguments = [argument for argument in get_args(here) if argument is not ...]
                fixed = get_origin(here) is tuple and ... not in get_args(here)
                self.type, self.metadata = arguments[step if fixed else -1], ()

    def _inside(self) -> Any:
        """The type less its annotations, and less null."""
        here = self.type
        while True:
            if hasattr(here, "__metadata__"):
                here = here.__origin__
            elif get_origin(here) in (UnionType, Union) and NoneType in get_args(here):
                rest = tuple(option for option in get_args(here) if option is not NoneType)
                here = rest[0] if len(rest) == 1 else Union[rest]  # noqa: UP007
            else:
                return here
