"""Seeds, digests and comparisons."""

import subprocess
import zipfile

import numpy as np
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
