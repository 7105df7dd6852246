"""What users read of the config, generated from its types: the JSON schema and the page of keys.

`python -m saeflow.config.document` (in scripts/) rewrites both; a test fails when they drift.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic.fields import FieldInfo

from saeflow.config.messages import right
from saeflow.config.saes import VARIANTS, SparseAutoencoder
from saeflow.config.sections import Section
from saeflow.config.study import Study

ROOT = Path(__file__).parents[3]
SCHEMA = ROOT / "workflow" / "schemas" / "study.schema.json"
PAGE = ROOT / "config" / "README.md"

_HEAD = """# The study file

One study is one YAML file; every key, its meaning, unit and default. Unknown, repeated or contradictory keys are
refused before any job starts, with the key, its value and what would be right. `config.yaml` is the default study,
`studies/` holds more.

The file is text in UTF-8. A number may be written `1000`, `1_000` or `1e3`, not `010`. True and false may also be
written `yes`, `no`, `on` and `off`: put a name such as `no` in quotes. A day needs none. Anchors (`&name`, `*name`) and
`<<` work.

```sh
snakemake --cores 2 --configfile config/studies/mnist.yaml
```

This page is generated from the types in `scripts/saeflow/config/`.
"""


def schema() -> str:
    """JSON schema of a study, as Snakemake and editors read it."""
    return json.dumps(Study.model_json_schema(), indent=2, sort_keys=True) + "\n"


def page() -> str:
    """Markdown page of all keys: a table per section."""
    parts = [_HEAD, _table("the study", Study)]
    shown: dict[type[Section], str] = {}
    for path, section in _sections(Study, ""):
        if section in shown:
            parts += [f"\n## `{path}`\n\nAs `{shown[section]}`.\n"]
            continue
        shown[section] = path
        if section is SparseAutoencoder:
            parts += [f"\n## `{path}`\n\nA name of your own for each SAE; `architecture` selects its kind.\n"]
            parts += [_table(f"architecture: {tag}", variant, level=3) for tag, variant in VARIANTS.items()]
        else:
            parts.append(_table(f"`{path}`", section))
    return "".join(parts)


def _sections(section: type[Section], prefix: str) -> Iterator[tuple[str, type[Section]]]:
    """Sections below a section, depth first, with their dotted path; all SAE variants stand for one."""
    for name, field in section.model_fields.items():
        found = _section_in(field.annotation)
        if found is None:
            continue
        path = f"{prefix}{name}" + (".<name>" if get_origin(field.annotation) is dict else "")
        yield path, found
        if found is not SparseAutoencoder:
            yield from _sections(found, f"{path}.")


def _section_in(annotation: Any) -> type[Section] | None:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return SparseAutoencoder if issubclass(annotation, SparseAutoencoder) else annotation
    inner = (_section_in(argument) for argument in get_args(annotation))
    return next((section for section in inner if section), None)


def _table(title: str, section: type[Section], level: int = 2) -> str:
    rows = [
        f"| `{name}` | {_type(field)} | {_default(field)} | {field.description} |"
        for name, field in section.model_fields.items()
    ]
    head = ["", f"{'#' * level} {title}", "", section.__doc__.strip(), ""]
    return "\n".join([*head, "| key | type | default | meaning |", "| --- | --- | --- | --- |", *rows, ""])


def _type(field: FieldInfo) -> str:
    if _section_in(field.annotation) and get_origin(field.annotation) is not tuple:
        return "map of sections" if get_origin(field.annotation) is dict else "section"
    return right(field.annotation, field.metadata)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if _section_in(field.annotation):
        return "see below"
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    return f"`{json.dumps(value)}`"


def main() -> None:
    SCHEMA.write_text(schema(), encoding="utf-8")
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
