"""A study as it is read: what its files and the command line say is merged, then checked."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from saeflow import strict_yaml
from saeflow.config import checks, size
from saeflow.config.messages import explain, limited
from saeflow.config.sections import ConfigError
from saeflow.config.study import Study
from saeflow.redaction import has_password, is_secret_name
from saeflow.strict_yaml import DEEPEST, shown


def parse(config: Mapping[str, Any]) -> Study:
    """Study of a mapping.

    Raises:
        ConfigError: a line per mistake, each naming the key, its value and what would be right.
    """
    if secrets := list(_secrets(config, "")):
        raise ConfigError(limited(secrets))
    try:
        study = Study.model_validate(config)
    except ValidationError as error:
        raise ConfigError(explain(error, Study)) from None
    for look in (size.problems, checks.of_names, checks.of_agreement):
        if found := list(look(study)):
            raise ConfigError(limited(found))
    return study


def load(path: Path | str) -> Study:
    """Study of a YAML file; raises ConfigError as `parse` does, and where the file cannot be read."""
    return parse(read(path))


def read(*paths: Path | str, over: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """What files say, and `over` them the command line: sections are merged, and of two values the last counts.

    Raises:
        ConfigError: a file that is no YAML, holds no keys, or has one twice.
    """
    merged: dict[str, Any] = {}
    for path in paths:
        try:
            content = strict_yaml.read(path)
        except strict_yaml.YAMLFileError as error:
            raise ConfigError(str(error)) from None
        if content is None:
            raise ConfigError(f"{path}: is empty; a study has at least `study: <name>`")
        if not isinstance(content, Mapping):
            raise ConfigError(f"{path}: holds {shown(content)}; a study is made of keys, as `study: <name>`")
        merged = _merged(merged, content)
    return _merged(
        merged, {key: _typed(value) if isinstance(value, dict | list) else value for key, value in over.items()}
    )


def check_command_line(words: Sequence[str]) -> None:
    """Refuse a key that `--config` of Snakemake's command line gives twice, of which it would keep the last.

    Raises:
        ConfigError: names the key.
    """
    given, seen = False, set()
    for word in words:
        if word.startswith("-"):
            given = word in ("--config", "-C") or word.startswith("--config=")
        key, is_setting, value = word.removeprefix("--config=").partition("=")
        if not (given and is_setting):
            continue
        if key in seen:
            raise ConfigError(f"--config: {key} is given twice; keep one of them")
        seen.add(key)
        if value.startswith(("{", "[")):
            try:
                strict_yaml.parse(value, f"--config {key}")
            except strict_yaml.YAMLFileError as error:
                raise ConfigError(str(error)) from None


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _typed(value: Any) -> Any:
    """Content of `--config`, in which Snakemake leaves all that stands in brackets text."""
    if isinstance(value, Mapping):
        return {key: _typed(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_typed(inner) for inner in value]
    try:
        return strict_yaml.scalar(value) if isinstance(value, str) else value
    except ValueError as error:
        raise ConfigError(f"--config: {error}") from None


def _secrets(value: Any, key: str) -> Iterator[str]:
    """A line for each secret of a study, which is published with its results; none shows the secret."""
    if key.count(".") > DEEPEST:
        yield f"{key[:80]}…: more than {DEEPEST} lists and sections inside of one another"
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _secrets(inner, f"{key}.{name}".lstrip("."))
    elif is_secret_name(key.rpartition(".")[2]):
        yield f"{key}: a secret has no place in a study; drop the key, and set the environment variable of its library"
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from _secrets(inner, f"{key}.{i}")
    elif isinstance(value, str) and has_password(value):
        yield f"{key}: a URL with a password has no place in a study; keep the URL in an environment variable"
