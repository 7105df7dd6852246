"""What every section of a study is made of: closed sections, and the types of names, paths, seeds and shares."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

# Names become files and folders of the results: no separator, no dot in front, and short enough for every disk.
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$", max_length=64)]
# What is only read may lie anywhere; braces and angle brackets would be Snakemake's wildcards and variables.
PathToRead = Annotated[str, Field(pattern=r"^[^\x00-\x1f{}<>]+$", max_length=4095)]
Architecture = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9]*$", max_length=64)]
# Words of a text or a title, on one line.
Line = Annotated[str, Field(pattern=r"^[^\x00-\x1f]+$", max_length=200)]
Share = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class ConfigError(ValueError):
    """A study that cannot be run; the message names each key, its value and what would be right."""


class Section(BaseModel):
    """A part of the study: frozen, and closed to keys that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def each_once(values: tuple) -> tuple:
    twice = sorted({value for value in values if values.count(value) > 1})
    if twice:
        raise PydanticCustomError("repeated", "It names {twice} twice", {"twice": ", ".join(map(str, twice))})
    return values


HookPoint = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$", max_length=64)]
Seeds = Annotated[tuple[Seed, ...], AfterValidator(each_once)]
