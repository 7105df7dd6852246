"""The bridge from a job to main()."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from saeflow import rule


class Named(dict):
    """Snakemake's named list, as far as the bridge reads it."""


def job(tmp_path, **params):
    return SimpleNamespace(
        input=Named(store="in/a", parts=["in/b", "in/c"], lib=["x.py"]),
        output=Named(table="out/t"),
        params=Named(params),
        log=[str(tmp_path / "job.log")],
        threads=1,
        rule="some_rule",
    )


def test_main_gets_what_it_asks_for(tmp_path):
    got = {}

    def main(*, store, parts, table, cfg):
        got.update(store=store, parts=parts, table=table, cfg=cfg)

    rule.run(main, job(tmp_path, cfg={"seed": 3}))
    assert got == {
        "store": Path("in/a"),
        "parts": [Path("in/b"), Path("in/c")],
        "table": Path("out/t"),
        "cfg": {"seed": 3},
    }
    assert "done in" in (tmp_path / "job.log").read_text()


def test_a_failure_leaves_its_traceback_in_the_log_and_its_cause_on_the_terminal(tmp_path):
    def main(*, store):
        raise FileNotFoundError(f"{store}: not there")

    with pytest.raises(SystemExit, match="some_rule: FileNotFoundError: in/a: not there"):
        rule.run(main, job(tmp_path))
    assert "Traceback" in (tmp_path / "job.log").read_text()


def test_a_name_that_the_rule_lacks_is_told(tmp_path):
    def main(*, sotre):
        pass

    with pytest.raises(SystemExit, match=r"also wants \['sotre'\]"):
        rule.run(main, job(tmp_path))


def test_a_gpu_that_is_not_there_is_an_error_before_any_work(tmp_path):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")

    def main(*, store, cfg):
        raise AssertionError("must not run")

    with pytest.raises(SystemExit, match=r"compute.device: 'cuda', but torch finds no CUDA device here"):
        rule.run(main, job(tmp_path, cfg={"device": "cuda"}))
