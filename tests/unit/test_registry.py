"""A new kind of a thing is a new file, which is found without being named anywhere."""

import sys

import pytest

from saeflow import library
from saeflow.registry import Registry


@pytest.fixture
def shapes(tmp_path, monkeypatch):
    """A package of two kinds, and the registry that they register themselves with."""
    package = tmp_path / "shapes"
    package.mkdir()
    (package / "__init__.py").write_text("from saeflow.registry import Registry\n\nSHAPES = Registry('shapes')\n")
    for name in ("square", "circle"):
        source = f"from shapes import SHAPES\n\nSHAPES.register({name!r})({name.title()!r})\n"
        (package / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    yield package
    for name in [name for name in sys.modules if name.partition(".")[0] == "shapes"]:
        del sys.modules[name]


def test_kinds_are_found_in_the_files_of_the_package(shapes):
    from shapes import SHAPES

    assert dict(SHAPES) == {"circle": "Circle", "square": "Square"}
    assert len(SHAPES) == 2


def test_two_kinds_of_one_name_are_refused():
    kinds = Registry("saeflow")
    kinds.register("one")("first")
    with pytest.raises(ValueError, match="saeflow: two kinds are called 'one'"):
        kinds.register("one")("second")


def test_the_files_of_a_registry_count_as_imported(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from saeflow.registry import Registry\n\nKINDS: Registry[str] = Registry('saeflow.sae.objectives')\n"
    )
    files = library.modules_of(script)
    assert {str(path) for path in (library.PACKAGE / "sae" / "objectives").glob("*.py")} <= set(files)


def test_a_kind_is_looked_up_by_the_module_of_its_name_alone(shapes):
    from shapes import SHAPES

    assert SHAPES["circle"] == "Circle"
    assert "shapes.square" not in sys.modules
    with pytest.raises(KeyError):
        SHAPES["line"]
