"""YAML files that people bring, read so that nothing in them is lost or guessed.

PyYAML keeps the last of two equal keys, takes `010` for 8, `1:30` for 90 and `1e-3` for text, and follows anchors
without end. Here a key stands once, a number is what it looks like, days and times stay text, and what is no YAML is
named by line and column, within a second whatever the file.
"""

import codecs
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

MOST_BYTES = 16 * 2**20
MOST_VALUES = 100_000
"""Values of a file, those behind an alias counted each time."""
DEEPEST = 32
"""Lists and sections inside of one another."""
MOST_REPEATED = 20
"""Repeated keys that one message names."""
LONGEST_VALUE = 80
"""Characters of a value that a message shows."""

_WORDS = {
    **dict.fromkeys(("true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON"), True),
    **dict.fromkeys(("false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF"), False),
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **{sign + word: float(sign + "inf") for sign in ("", "+", "-") for word in (".inf", ".Inf", ".INF")},
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}
_WHOLE = re.compile(r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F]+|0o[0-7]+|0b[01]+)")
_FRACTION = re.compile(r"[-+]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?")
_OCTAL = re.compile(r"[-+]?0[0-9_]+")
_UNPRINTABLE = re.compile("[^\t\n\r -~\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
_TAG = "tag:yaml.org,2002:"
_TYPES: dict[str, tuple[type, ...]] = {"int": (int,), "float": (float, int), "bool": (bool,), "null": (type(None),)}
# What the parser of YAML says, and what that comes from.
_CAUSES = {
    "mapping values are not allowed": "a ':' where no key can stand; indent the keys of one section alike, and put "
    "text that holds ': ' in quotes",
    "expected ':'": "a key without ': ' behind it",
    "expected ',' or ']'": "a '[' that is not closed, or a comma that is missing",
    "expected ',' or '}'": "a '{' that is not closed, or a comma that is missing",
    "expected node content": "a value is missing, or a bracket or comma stands where none belongs",
    "expected '-' indicator": "a list whose entries are not indented alike",
    "expected key": "indented unlike the section that it stands in, or behind a value that has ended",
    "expected <block end>": "indented unlike the section that it stands in, or behind a value that has ended",
    "expected <document start>": "indented unlike the line before, or behind what has ended; a file holds keys alone",
    "block sequence entries are not allowed": "a '- ' where no list can stand; give the list lines of its own",
    "end of stream": "a quote that is not closed",
    "document indicator": "a quote that is not closed",
    "escape": "a '\\' in double quotes that YAML does not know; use single quotes",
    "alphabetic or numeric character": "'&' and '*' have a meaning in YAML; put the text in quotes",
    "tag": "'!' has a meaning in YAML; put the text in quotes",
    "tab character": "a tab; indent with spaces",
    "nesting depth": f"more than {DEEPEST} lists and sections inside of one another",
    "directive": "'%' at the start of a line has a meaning in YAML; put the text in quotes",
}


class _Dumper(yaml.SafeDumper):
    """PyYAML's, which leaves `1e3`, `08` and `0o7` without quotes: text to it, but not to `scalar`."""


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    number = _OCTAL.fullmatch(text) or _WHOLE.fullmatch(text) or _FRACTION.fullmatch(text)
    return dumper.represent_scalar(f"{_TAG}str", text, style="'" if number else None)


_Dumper.add_representer(str, _represent_text)


class YAMLFileError(ValueError):
    """A file that cannot be read as it is; the message names it, the line, and what would be right."""


def read(path: Path | str) -> Any:
    """Content of a YAML file: sections as dicts, lists, text, numbers, true or false; None if there is nothing in it.

    Raises:
        YAMLFileError: no file, no text in UTF-8, no YAML, a key given twice, or more than a study can mean.
    """
    return parse(_text(Path(path)), str(path))


def parse(text: str, name: str) -> Any:
    """Content of a YAML text; `name` is what errors call it. Raises YAMLFileError as `read` does."""
    if bad := _UNPRINTABLE.search(text):
        line, column = text.count("\n", 0, bad.start()) + 1, bad.start() - text.rfind("\n", 0, bad.start())
        raise YAMLFileError(
            f"{name}, line {line}, column {column}: the character U+{ord(bad[0]):04X} is no text; drop it"
        )
    if text.lstrip().startswith("{"):  # JSON may be indented by tabs, which stand nowhere else in it
        text = text.replace("\t", " ")
    try:
        return _Document(name).of(yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    except yaml.MarkedYAMLError as error:
        raise YAMLFileError(_in_words(error, name, text)) from None
    except yaml.YAMLError as error:
        raise YAMLFileError(f"{name}: is no YAML ({error})") from None


def scalar(text: str) -> Any:
    """What a text without quotes stands for.

    Raises:
        ValueError: a number that is another one in each version of YAML, or has too many digits.
    """
    if text in _WORDS:
        return _WORDS[text]
    if _OCTAL.fullmatch(text):
        raise ValueError(f"'{text[:40]}' starts with 0; write a number without it, and text in quotes")
    if _WHOLE.fullmatch(text):
        if len(text) > 1000:
            raise ValueError(f"a number of {len(text)} digits; put text in quotes")
        return int(text.replace("_", ""), 0)
    if _FRACTION.fullmatch(text):
        return float(text.replace("_", ""))
    return text


def written(content: Any) -> str:
    """Content as YAML that `read` gives back: text that it would take for a number stands in quotes."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def shown(value: Any) -> str:
    """A value as a study writes it, cut off where it is long."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case str():
            return repr(value) if len(value) <= LONGEST_VALUE else f"{value[:40]!r}… ({len(value):,} characters)"
        case int():
            digits = int(value.bit_length() * math.log10(2)) + 1
            return str(value) if digits <= 40 else f"a number of some {digits} digits"
        case float():
            return (
                repr(value)
                if math.isfinite(value)
                else f"{'-' if value < 0 else ''}.{'nan' if value != value else 'inf'}"
            )
        case Mapping():
            return _joined(
                "{", [f"{key if isinstance(key, str) else shown(key)}: …" for key in _first(value)], value, "}"
            )
        case list() | tuple():
            return _joined("[", [shown(entry) if _is_scalar(entry) else "…" for entry in _first(value)], value, "]")
    return repr(str(value)[:LONGEST_VALUE])


def _is_scalar(value: Any) -> bool:
    return not isinstance(value, Mapping | list | tuple)


def _first(values: Any) -> list:
    return [value for value, _ in zip(values, range(12), strict=False)]


def _joined(start: str, parts: list[str], whole: Any, end: str) -> str:
    text = start + ", ".join(parts) + (", …" if len(whole) > len(parts) else "") + end
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}… ({len(whole):,} entries)"


def _text(path: Path) -> str:
    """A file's text."""
    if path.is_dir():
        raise YAMLFileError(f"{path}: is a folder; name the file")
    if not path.exists():
        raise YAMLFileError(f"{path}: no such file")
    if not path.is_file():
        raise YAMLFileError(f"{path}: is no file that can be read twice; write its content to one")
    try:
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise YAMLFileError(f"{path}: cannot be read ({error.strerror})") from None
    if len(content) > MOST_BYTES:
        raise YAMLFileError(f"{path}: has more than {MOST_BYTES // 2**20} MiB; this is no file of settings")
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise YAMLFileError(f"{path}: is UTF-16; save it as UTF-8")
    if b"\0" in content:
        raise YAMLFileError(f"{path}: is no text, or not in UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = content[error.start]
        raise YAMLFileError(
            f"{path}, line {line}: the byte 0x{byte:02X} is not UTF-8; save the file as UTF-8"
        ) from None


@dataclass
class _Open:
    """A list or section whose end has not come; `before` is how many values there were before it."""

    content: list | dict
    anchor: str | None
    before: int
    key: Any = None
    has_key: bool = False
    lines: dict[str, int] = field(default_factory=dict)
    merged: list[dict] = field(default_factory=list)


class _Merge:
    """The key `<<`."""


class _Document:
    """Builds the content of one document from what the parser finds, without recursion."""

    def __init__(self, name: str) -> None:
        self.name, self.n_values = name, 0
        self.open: list[_Open] = []
        self.anchors: dict[str, tuple[Any, int]] = {}
        self.repeated: list[str] = []
        self.result: Any = None

    def of(self, events: Iterator[yaml.Event]) -> Any:
        documents = 0
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise self._error(event, "a second document starts here ('---'); a file holds one")
            elif isinstance(event, yaml.AliasEvent):
                self._alias(event)
            elif isinstance(event, yaml.ScalarEvent):
                self._scalar(event)
            elif isinstance(event, yaml.CollectionStartEvent):
                self._start(event)
            elif isinstance(event, yaml.CollectionEndEvent):
                self._end(event)
        if self.repeated:
            more = len(self.repeated) - MOST_REPEATED
            raise YAMLFileError("\n".join(self.repeated[:MOST_REPEATED] + [f"and {more} more"] * (more > 0)))
        return self.result

    def _error(self, event: yaml.Event, what: str) -> YAMLFileError:
        mark = event.start_mark
        return YAMLFileError(f"{self.name}, line {mark.line + 1}, column {mark.column + 1}: {what}")

    def _count(self, event: yaml.Event, n: int) -> None:
        self.n_values += n
        if self.n_values > MOST_VALUES:
            raise self._error(event, f"more than {MOST_VALUES:,} values up to here; this is no file of settings")

    def _alias(self, event: yaml.AliasEvent) -> None:
        if event.anchor not in self.anchors:
            inside = any(frame.anchor == event.anchor for frame in self.open)
            why = "stands inside of what it names" if inside else "names nothing above it; put text in quotes"
            raise self._error(event, f"'*{event.anchor[:80]}' {why}")
        value, size = self.anchors[event.anchor]
        self._count(event, size)
        self._add(event, value)

    def _scalar(self, event: yaml.ScalarEvent) -> None:
        before = self.n_values
        self._count(event, 1)
        tag = (event.tag or "").removeprefix(_TAG)
        plain = event.implicit[0] and not tag
        try:
            if plain and event.value == "<<" and self._expects_key():
                value = _Merge
            elif plain or tag in _TYPES:
                value = scalar(event.value)
            elif tag in ("", "!", "str"):
                value = event.value
            else:
                raise ValueError(f"the tag '{_written(event.tag)}' means nothing here; drop it")
            if tag in _TYPES and type(value) not in _TYPES[tag]:
                raise ValueError(f"the tag '!!{tag}' does not fit what is behind it; drop it")
        except ValueError as error:
            raise self._error(event, str(error)) from None
        if event.anchor:
            self.anchors[event.anchor] = (value, self.n_values - before)
        self._add(event, value)

    def _expects_key(self) -> bool:
        return bool(self.open) and isinstance(self.open[-1].content, dict) and not self.open[-1].has_key

    def _start(self, event: yaml.CollectionStartEvent) -> None:
        if self._expects_key():
            raise self._error(event, "a list or section where a key belongs; put text in quotes")
        if len(self.open) == DEEPEST:
            raise self._error(event, f"more than {DEEPEST} lists and sections inside of one another")
        content: list | dict = {} if isinstance(event, yaml.MappingStartEvent) else []
        if (event.tag or "!").removeprefix(_TAG) not in ("!", "map" if isinstance(content, dict) else "seq"):
            raise self._error(event, f"the tag '{_written(event.tag)}' means nothing here; drop it")
        self.open.append(_Open(content, event.anchor, self.n_values))
        self._count(event, 1)

    def _end(self, event: yaml.CollectionEndEvent) -> None:
        frame = self.open.pop()
        content = frame.content
        for merged in frame.merged:  # what stands here goes before what is merged, and the first merged before the next
            content |= {key: value for key, value in merged.items() if str(key) not in frame.lines}
            frame.lines |= {str(key): 0 for key in merged}
        if frame.anchor:
            self.anchors[frame.anchor] = (content, self.n_values - frame.before)
        self._add(event, content)

    def _add(self, event: yaml.Event, value: Any) -> None:
        """Put a value where it belongs: into the list or section that is open, or on top."""
        if not self.open:
            self.result = value
            return
        frame = self.open[-1]
        if isinstance(frame.content, list):
            frame.content.append(value)
        elif not frame.has_key:
            self._add_key(event, frame, value)
        else:
            if frame.key is _Merge:
                given = value if isinstance(value, list) else [value]
                if not all(isinstance(one, dict) for one in given):
                    raise self._error(event, "behind '<<' belongs a section, as '*name' of one that has '&name'")
                frame.merged += given
            else:
                frame.content[frame.key] = value
            frame.key, frame.has_key = None, False

    def _add_key(self, event: yaml.Event, frame: _Open, key: Any) -> None:
        line = event.start_mark.line + 1
        if key is not _Merge and (not isinstance(key, str | int) or isinstance(key, bool)):
            seen = (event.value if isinstance(event, yaml.ScalarEvent) else f"*{event.anchor}")[:80]
            raise self._error(event, f"the key '{seen}' is no text to YAML; put it in quotes")
        name = "<<" if key is _Merge else str(key)
        if name in frame.lines:
            path = ".".join([*(str(above.key) for above in self.open[:-1] if above.has_key), name])
            first = frame.lines[name]
            where = f"line {line}" if line == first else f"lines {first} and {line}"
            self.repeated.append(f"{self.name}, {where}: {path} is given twice; keep one of them")
        frame.lines[name] = line
        frame.key, frame.has_key = key, True


def _written(tag: str) -> str:
    """A tag as the file has it, cut off where it is long."""
    return (f"!!{tag.removeprefix(_TAG)}" if tag.startswith(_TAG) else tag)[:80]


def _in_words(error: yaml.MarkedYAMLError, name: str, text: str) -> str:
    """Where and what is wrong."""
    mark, problem = error.problem_mark or error.context_mark, error.problem or ""
    if mark is None:
        return f"{name}: is no YAML ({problem})"
    lines = text.splitlines() or [""]
    # The end of a file that lacks something lies behind its last line.
    at, column = (mark.line, mark.column) if mark.line < len(lines) else (len(lines) - 1, len(lines[-1]))
    line = lines[at]
    here = line[column : column + 1]
    if "cannot start any token" in problem:
        what = (
            "a tab; indent with spaces" if here == "\t" else f"'{here}' has a meaning in YAML; put the text in quotes"
        )
    elif "\t" in line[: len(line) - len(line.lstrip())]:
        what = "a tab; indent with spaces"
    else:
        what = next((words for said, words in _CAUSES.items() if said in problem), f"this is no YAML: {problem}")
    started = error.context_mark
    since = f" (it starts in line {started.line + 1})" if started is not None and started.line != at else ""
    return f"{name}, line {at + 1}, column {column + 1}: {what}{since}"
