"""What the metadata of a study's crate says: its files with their digests, its software, its machines."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from saeflow.publish import crate_layout as layout
from saeflow.terminal import plain


class CrateError(Exception):
    """A crate that cannot be rebuilt here; the message says what is wrong and what would be right."""


@dataclass(frozen=True)
class Described:
    """A crate as its metadata describes it.

    Arguments:
        files: sha256 of each file, by its path in the crate.
        software: versions by name.
        machine: names of processors and GPUs, under `processor` and `gpus`.
    """

    files: dict[str, str]
    software: dict[str, set[str]]
    machine: dict[str, set[str]]


class _File(BaseModel):
    id: str = Field(alias="@id")
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Software(BaseModel):
    name: str
    version: str = Field(alias="softwareVersion")


class _Property(BaseModel):
    name: str
    value: str


class _Entity(BaseModel):
    id: str = Field(alias="@id")
    type: str | list[str] = Field("", alias="@type")

    def is_a(self, kind: str) -> bool:
        return kind in ([self.type] if isinstance(self.type, str) else self.type)


_Link = TypeAdapter(dict[Literal["@id"], str])


def read(content: bytes) -> Described:
    """The metadata of a crate, from the bytes of its file.

    Raises:
        CrateError: damaged, of something other than a study's crate, or with a file that no crate holds.
    """
    try:
        graph = json.loads(content)["@graph"]
        entities = {_Entity.model_validate(one).id: one for one in graph}
        workflow = _Link.validate_python(entities["./"]["mainEntity"])["@id"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CrateError(_unreadable(error)) from None
    if workflow != "Snakefile":
        raise CrateError(f"{layout.METADATA}: its main entity is {plain(workflow)}, but a study's is the Snakefile")
    files, software, machine = {}, {}, {"processor": set(), "gpus": set()}
    for one in entities.values():
        entity = _Entity.model_validate(one)
        try:
            if entity.is_a("File"):
                files[check_name(entity.id)] = _File.model_validate(one).sha256
            elif entity.is_a("SoftwareApplication"):
                package = _Software.model_validate(one)
                software.setdefault(package.name, set()).add(package.version)
            elif entity.id.startswith("#machine-"):
                fact = _Property.model_validate(one)
                machine.get(fact.name, set()).add(fact.value)
        except ValidationError as error:
            raise CrateError(f"{_unreadable(error)}; see its entity {plain(entity.id)}") from None
    for name in (name for name, values in machine.items() if not values):
        raise CrateError(f"{layout.METADATA}: does not say on which {name} the study ran; the crate is incomplete")
    check_names(files)
    return Described(files, software, machine)


def check_name(name: str) -> str:
    """A path that stays inside of a crate, on every system.

    Raises:
        CrateError: absolute, with `..`, or with characters that no file of a crate has.
    """
    parts = PurePosixPath(name).parts
    whole = name and name == "/".join(parts) and len(name) <= layout.LONGEST_NAME
    if not whole or ".." in parts or not name.isprintable() or set(name) & set('\\:*?"<>|') or name[0] == "/":
        raise CrateError(f"'{plain(name)}' is no name of a file in a crate; this archive is not to be trusted")
    return name


def check_names(names: Iterable[str]) -> None:
    """No name twice, and no file that is a folder of another, where a disk ignores case too.

    Raises:
        CrateError: two names for one file.
    """
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(name.casefold(), name)
        if other is not name:
            raise CrateError(f"'{plain(name)}' and '{plain(other)}' are one file; this archive is not to be trusted")
    for name in seen:
        for parent in PurePosixPath(name).parents:
            if str(parent) in seen:
                raise CrateError(f"'{plain(seen[name])}' lies in a file; this archive is not to be trusted")


def _unreadable(error: Exception) -> str:
    what = "its JSON is nested too deeply" if isinstance(error, RecursionError) else "its JSON is not as it was written"
    return f"{layout.METADATA}: cannot be read as the metadata of a workflow's RO-Crate: {what}"
