"""Which keys of a study name files and folders, found by their type: a crate leaves them out, a rebuild gets them."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from saeflow.config.sections import PathToRead, Section

Named = str | list[str]
COMPARED = "reference"
"""What a study is compared with."""
IMAGES = "dataset.data_dir"
"""Where a data set lies that needs no comparison: its content is known to the project."""


def files_of(study: Section) -> dict[str, Named]:
    """Files and folders that a study names, by dotted key."""
    return dict(_found(study, ""))


def with_files(content: Mapping[str, Any], files: Mapping[str, Named | None]) -> dict[str, Any]:
    """A study's content with other files under some keys."""
    content = copy.deepcopy(dict(content))
    for key, value in files.items():
        *sections, name = key.split(".")
        section = content
        for step in sections:
            section = section[step]
        section[name] = value
    return content


def without_files(study: Section) -> dict[str, Any]:
    """A study's content as its crate has it: what it is compared with and where image sets lie are left out; for other
    files stands their key."""
    named = files_of(study)
    own = {COMPARED, IMAGES}
    marks = {
        key: [f"inputs/{key}/{i}" for i in range(len(value))] if isinstance(value, list) else f"inputs/{key}"
        for key, value in named.items()
    }
    return with_files(study.model_dump(mode="json"), marks | {key: None for key in own if key in named})


def _found(section: Section, above: str) -> Iterator[tuple[str, Named]]:
    for name, field in type(section).model_fields.items():
        value, key = getattr(section, name), f"{above}{name}"
        if _is_path(field.annotation):
            if value:
                yield key, value if isinstance(value, str) else list(value)
        elif isinstance(value, Section):
            yield from _found(value, f"{key}.")
        elif isinstance(value, Mapping):
            for inner, part in value.items():
                if isinstance(part, Section):
                    yield from _found(part, f"{key}.{inner}.")


def _is_path(annotation: Any) -> bool:
    return annotation == PathToRead or any(map(_is_path, get_args(annotation)))
