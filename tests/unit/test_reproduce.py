"""Seeds, digests and comparisons."""

import subprocess
import zipfile

import numpy as np
import pandas as pd
import pytest

from saeflow import reproduce


def test_a_child_seed_depends_on_the_names_alone():
    # The value is written down: a change of the derivation would change every study.
    assert reproduce.child_seed(0, "sae", 1) == 1202006586925787213
    assert reproduce.child_seed(0, "sae", 1) != reproduce.child_seed(1, "sae", 1)
    assert reproduce.child_seed(0, "ab", "c") != reproduce.child_seed(0, "a", "bc")


def test_arrays_come_back_and_their_file_says_nothing_else(tmp_path):
    arrays = {"x": np.arange(6.0).reshape(2, 3), "n": 4, "name": "digits"}
    reproduce.write_arrays(tmp_path / "a.npz", arrays)
    with np.load(tmp_path / "a.npz") as back:
        assert {name: back[name].tolist() for name in back.files} == {
            "x": [[0, 1, 2], [3, 4, 5]],
            "n": 4,
            "name": "digits",
        }
    entries = zipfile.ZipFile(tmp_path / "a.npz").infolist()
    # A local header is 30 bytes and the name: the extra field that newer versions of Python add is not there.
    assert entries[1].header_offset == 30 + len("x.npy") + entries[0].file_size
    assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}


def test_a_manifest_is_what_sha256sum_checks(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("x")
    (tmp_path / "a" / ".snakemake_timestamp").write_text("now")
    (tmp_path / "y").write_text("y")
    digests = reproduce.manifest(tmp_path, [tmp_path / "y", tmp_path / "a"])
    assert list(digests) == ["a/x", "y"]
    reproduce.write_manifest(tmp_path / "MANIFEST.sha256", digests)
    assert reproduce.read_manifest(tmp_path / "MANIFEST.sha256") == digests
    subprocess.run(["sha256sum", "-c", "MANIFEST.sha256"], cwd=tmp_path, check=True, capture_output=True)


def test_a_line_that_is_no_digest_is_named(tmp_path):
    (tmp_path / "m").write_text("abc  x\n")
    with pytest.raises(ValueError, match="m, line 1: expected"):
        reproduce.read_manifest(tmp_path / "m")


def test_manifests_are_compared_file_by_file():
    result = reproduce.compare_manifests(
        {"a": "1" * 64, "b": "2" * 64, "c": "3" * 64}, {"a": "1" * 64, "b": "9" * 64, "d": "4" * 64}
    )
    assert (result.n_equal, result.missing, result.unexpected, list(result.different)) == (1, ["d"], ["c"], ["b"])
    assert not result.equal
    assert reproduce.compare_manifests({"a": "1"}, {"a": "1"}).equal


def tables(folder, **columns):
    folder.mkdir(exist_ok=True)
    pd.DataFrame(columns).to_parquet(folder / "t.parquet")
    return folder


def test_tables_are_compared_within_tolerance_and_the_worst_number_is_told(tmp_path):
    ours = tables(tmp_path / "a", name=["p", "q"], x=[1.0, float("nan")], y=[10.0, 20.0])
    near = tables(tmp_path / "b", name=["p", "q"], x=[1.0 + 1e-7, float("nan")], y=[10.0, 20.0])
    far = tables(tmp_path / "c", name=["p", "q"], x=[1.1, float("nan")], y=[10.0, 25.0])
    assert reproduce.compare_tables(ours, near, rtol=1e-6, atol=0).equal
    difference = reproduce.compare_tables(ours, far, rtol=1e-6, atol=0).different["t.parquet"]
    assert difference.startswith("column y, row 1: 20, reference 25")


def test_a_number_where_the_reference_has_none_is_a_difference(tmp_path):
    ours, theirs = tables(tmp_path / "a", x=[1.0]), tables(tmp_path / "b", x=[float("nan")])
    assert not reproduce.compare_tables(ours, theirs, rtol=1, atol=1).equal


def test_text_columns_must_be_equal(tmp_path):
    ours, theirs = tables(tmp_path / "a", s=["x", "y"]), tables(tmp_path / "b", s=["x", "z"])
    assert "row 1: 'y', reference 'z'" in reproduce.compare_tables(ours, theirs, rtol=1, atol=1).different["t.parquet"]
