"""A study is like its reference to the digest or a tolerance; what is missing is missing in both."""

import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from saeflow import comparison


def test_manifests_are_compared_file_by_file():
    result = comparison.compare_manifests(
        {"a": "1" * 64, "b": "2" * 64, "c": "3" * 64}, {"a": "1" * 64, "b": "9" * 64, "d": "4" * 64}
    )
    assert (result.n_equal, result.missing, result.unexpected, list(result.different)) == (1, ["d"], ["c"], ["b"])
    assert not result.equal
    assert comparison.compare_manifests({"a": "1"}, {"a": "1"}).equal


def tables(folder, **columns):
    folder.mkdir(exist_ok=True)
    pd.DataFrame(columns).to_parquet(folder / "t.parquet")
    return folder


def test_tables_are_compared_within_tolerance_and_the_worst_number_is_told(tmp_path):
    ours = tables(tmp_path / "a", name=["p", "q"], x=[1.0, float("nan")], y=[10.0, 20.0])
    near = tables(tmp_path / "b", name=["p", "q"], x=[1.0 + 1e-7, float("nan")], y=[10.0, 20.0])
    far = tables(tmp_path / "c", name=["p", "q"], x=[1.1, float("nan")], y=[10.0, 25.0])
    assert comparison.compare_tables(ours, near, rtol=1e-6, atol=0).equal
    difference = comparison.compare_tables(ours, far, rtol=1e-6, atol=0).different["t.parquet"]
    assert difference.startswith("column y, row 1: 20, reference 25")


def test_a_number_where_the_reference_has_none_is_a_difference(tmp_path):
    ours, theirs = tables(tmp_path / "a", x=[1.0]), tables(tmp_path / "b", x=[float("nan")])
    assert not comparison.compare_tables(ours, theirs, rtol=1, atol=1).equal


def test_text_columns_must_be_equal(tmp_path):
    ours, theirs = tables(tmp_path / "a", s=["x", "y"]), tables(tmp_path / "b", s=["x", "z"])
    assert "row 1: 'y', reference 'z'" in comparison.compare_tables(ours, theirs, rtol=1, atol=1).different["t.parquet"]


@pytest.mark.parametrize(
    ("entries", "others", "said"),
    [
        ([None, "x"], [None, "x"], None),
        ([None, "x"], ["y", "x"], "column c, row 0: None, reference 'y'"),
        ([None, 1.0], [None, 1.0 + 1e-9], None),
        ([None, 1.0], [None, 2.0], "column c, row 1: 1, reference 2"),
        ([[1.0, None], [], [2.0]], [[1.0, None], [], [2.0 + 1e-9]], None),
        ([[1.0, None], [], [2.0]], [[1.0, None], [], [3.0]], "column c, row 2: 2, reference 3"),
        ([[1.0], [2.0]], [[1.0, 2.0], []], "column c, row 0: [1.0], reference [1.0, 2.0]"),
        ([["a", None]], [["a", "b"]], "column c, row 0: None, reference 'b'"),
        ([{"a": 1.0, "b": "x"}], [{"a": 1.0 + 1e-9, "b": "x"}], None),
        ([{"a": 1.0, "b": "x"}], [{"a": 1.0, "b": "z"}], "column c, row 0: 'x', reference 'z'"),
        ([True, None], [False, None], "column c, row 0: True, reference False"),
        (["x"], [1.0], "column c, row 0: a string, reference a double"),
        ([1], [1.0], None),
    ],
)
def test_missing_values_and_entries_of_lists_are_compared_as_what_they_are(tmp_path, entries, others, said):
    for name, values in (("a", entries), ("b", others)):
        (tmp_path / name).mkdir()
        parquet.write_table(pa.table({"c": values}), tmp_path / name / "t.parquet")
    result = comparison.compare_tables(tmp_path / "a", tmp_path / "b", rtol=1e-6, atol=0)
    assert result.different.get("t.parquet", "nothing").startswith(said or "nothing")
    assert result.equal is (said is None)


def test_words_in_a_dictionary_are_words(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    words = pa.array(["x", None, "y"])
    parquet.write_table(pa.table({"c": words}), tmp_path / "a" / "t.parquet")
    parquet.write_table(pa.table({"c": words.dictionary_encode()}), tmp_path / "b" / "t.parquet")
    assert comparison.compare_tables(tmp_path / "a", tmp_path / "b", rtol=0, atol=0).equal
