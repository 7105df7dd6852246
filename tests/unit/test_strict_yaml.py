"""Nothing in a YAML file is lost or guessed, and what is no YAML is named by line and column."""

import time

import pytest

from saeflow import strict_yaml
from saeflow.strict_yaml import YAMLFileError, parse, read


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3", "f, lines 1 and 3: a is given twice"),
        ("s:\n  t: {k: 4}\n  u: 1\n  t: {k: 16}", "f, lines 2 and 4: s.t is given twice"),
        ("a: {b: 1, 'b': 2}", "f, line 1: a.b is given twice"),
        ("s: [{a: 1, a: 2}]", "f, line 1: s.a is given twice"),
        ("s:\n  6: a\n  '6': b", "f, lines 2 and 3: s.6 is given twice"),
        ("6: a\n0x6: b", "f, lines 1 and 2: 6 is given twice"),
        ("a: {<<: {x: 1}, <<: {y: 1}}", "f, line 1: a.<< is given twice"),
        ("on: 1\ntrue: 2", "f, line 1, column 1: the key 'on' is no text to YAML; put it in quotes"),
        ("~: 1", "the key '~' is no text to YAML"),
        ("1.5: 1", "the key '1.5' is no text to YAML"),
        ("? [a]\n: 1", "line 1, column 3: a list or section where a key belongs"),
        ("a: 010", "line 1, column 4: '010' starts with 0"),
        ("a: [1, 2", "a '[' that is not closed, or a comma that is missing"),
        ("a: b: c", "line 1, column 5: a ':' where no key can stand"),
        ("a:\n\tb: 1", "line 2, column 1: a tab; indent with spaces"),
        ("a: 1\n  \tb: 1", "a tab; indent with spaces"),
        ("a: @x", "line 1, column 4: '@' has a meaning in YAML"),
        ("a: 'x", "a quote that is not closed"),
        ("a: 1\nb\nc: 2", "line 3, column 1: a key without ': ' behind it"),
        ("a: *b", "line 1, column 4: '*b' names nothing above it"),
        ("a: &b [*b]", "'*b' stands inside of what it names"),
        ("a: !!python/object:os.x 1", "line 1, column 4: the tag '!!python/object:os.x' means nothing here"),
        ("a: !mine 1", "the tag '!mine' means nothing here"),
        ("a: !!int x", "the tag '!!int' does not fit"),
        ("a: 1\n---\nb: 1", "line 2, column 1: a second document starts here"),
        ("a: {<<: 1}", "behind '<<' belongs a section"),
        ("a: x\x07", "line 1, column 5: the character U+0007 is no text"),
        ("a: " + "9" * 5000, "a number of 5000 digits"),
        ("[" * 100_000, "inside of one another"),
        ("".join(" " * i + "a:\n" for i in range(200)), "line 33, column 33: more than 32 lists and sections"),
        ("a: [" + "1, " * 400_000 + "1]", "more than 100,000 values up to here"),
        (
            "a0: &a0 {x: 1}\n"
            + "".join(f"a{i}: &a{i} {{{', '.join(f'k{j}: *a{i - 1}' for j in range(9))}}}\n" for i in range(1, 12)),
            "more than 100,000 values up to here",
        ),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_is_wrong_is_said_with_its_line_in_a_moment(text, said):
    started = time.process_time()
    with pytest.raises(YAMLFileError) as error:
        parse(text, "f")
    assert said in str(error.value)
    assert len(str(error.value)) < 500
    assert time.process_time() - started < 2


def test_every_repeated_key_is_told_at_once_up_to_a_number():
    with pytest.raises(YAMLFileError) as error:
        parse("a: 1\n" * 40, "f")
    assert len(str(error.value).splitlines()) == strict_yaml.MOST_REPEATED + 1


def test_values_are_what_they_look_like():
    text = "i: 1_000\nj: 1e3\nk: 1e-3\nl: .5\nm: 5.\nn: 0x1F\no: -0\np: 1.5E+3\nq: .inf\nr: ~\ns: yes\nt: Off\nu:"
    assert parse(text, "f") == {
        "i": 1000,
        "j": 1000.0,
        "k": 0.001,
        "l": 0.5,
        "m": 5.0,
        "n": 31,
        "o": 0,
        "p": 1500.0,
        "q": float("inf"),
        "r": None,
        "s": True,
        "t": False,
        "u": None,
    }
    words = [
        "2026-01-31",
        "1:30",
        "1.2.3",
        "1e",
        "nan",
        "inf",
        "y",
        "0x",
        "=",
        "a-b",
        "12:30:45.5",
        "2026-01-31 10:00:00",
    ]
    assert parse("".join(f"- {word}\n" for word in words), "f") == words
    assert parse("[!!str 12, '12', \"no\", !!float 3]", "f") == ["12", "12", "no", 3]


def test_anchors_and_merged_keys_work_and_repeat_nothing():
    text = "a: &a {x: 1, y: 2}\nb: &b {y: 3, z: 4}\nc: {<<: *a, x: 5}\nd: {<<: [*a, *b], w: *a}"
    found = parse(text, "f")
    assert found["c"] == {"x": 5, "y": 2}
    assert found["d"] == {"w": {"x": 1, "y": 2}, "x": 1, "y": 2, "z": 4}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a: 1\nb: caf\xe9\n", "line 2: the byte 0xE9 is not UTF-8"),
        ("a: 1".encode("utf-16"), "is UTF-16; save it as UTF-8"),
        (b"PK\x03\x04\x00\x00", "is no text"),
        (b"#" * (strict_yaml.MOST_BYTES + 1), "has more than 16 MiB"),
    ],
)
def test_a_file_that_is_no_text_in_utf8_is_refused(tmp_path, content, said):
    (tmp_path / "f.yaml").write_bytes(content)
    with pytest.raises(YAMLFileError, match=said):
        read(tmp_path / "f.yaml")


def test_no_file_a_folder_and_a_device_are_refused_by_name(tmp_path):
    for path, said in ((tmp_path / "x", "no such file"), (tmp_path, "is a folder"), ("/dev/null", "is no file")):
        with pytest.raises(YAMLFileError, match=f"^{path}: {said}"):
            read(path)


def test_a_byte_order_mark_and_json_with_tabs_are_read(tmp_path):
    (tmp_path / "f.yaml").write_bytes(b'\xef\xbb\xbf{\n\t"a": [1, null, true],\r\n\t"b": 1e3\n}\n')
    assert read(tmp_path / "f.yaml") == {"a": [1, None, True], "b": 1000.0}
    (tmp_path / "f.yaml").write_bytes(b"")
    assert read(tmp_path / "f.yaml") is None


NUMBERS = ("1e3", "1E5", "1_e3", "08", "089", "010", "0o7", "0x1f", "0b1", ".5", "5.", "-3", ".inf", "1:30")


@pytest.mark.parametrize("text", [*NUMBERS, "2026-01-31", "yes", "", "~", "<<", "a: b", "# a", "*a", "é", "a\nb"])
def test_text_that_looks_like_something_else_is_written_so_that_it_stays_text(text):
    content = {"study": text, text: [text, 3, 0.001, None, True]}
    assert parse(strict_yaml.written(content), "f") == content
