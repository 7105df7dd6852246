"""The bridge from a job to main()."""

import errno
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from saeflow import gpu, rule
from saeflow.reproduce import ENVIRONMENT


class Named(dict):
    """Snakemake's named list, as far as the bridge reads it."""

    def __iter__(self):
        for files in self.values():
            yield from [files] if isinstance(files, str) else files


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


def test_a_job_that_makes_tables_but_no_frames_does_not_import_pandas(tmp_path):
    probe = """
import sys
import pyarrow
from saeflow import rule

rule._spare_pandas()
table = pyarrow.Table.from_pylist([{"a": 1}])
assert "pandas" not in sys.modules
assert table.to_pandas()["a"].tolist() == [1]
"""
    subprocess.run([sys.executable, "-c", probe], check=True)


def test_the_process_of_a_script_ends_with_its_job_and_loses_nothing(tmp_path):
    script = """
import atexit, sys
from types import SimpleNamespace
from saeflow import rule

def main(*, fails):
    atexit.register(print, "called at the end")
    sys.stdout.write("not yet flushed, ")
    if fails:
        raise ValueError("fails")

fails = sys.argv[1] == "fails"
job = SimpleNamespace(input={}, output={}, params={"fails": fails}, log=["job.log"], threads=1, rule="some_rule")
rule.run(main, job)
print("after the job")
"""

    def run(fails):
        command = [sys.executable, "-c", script, fails]
        environment = os.environ | {"PYTHONPATH": str(Path(rule.__file__).parents[1])}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    done = run("not")
    assert (done.returncode, done.stdout, done.stderr) == (0, "not yet flushed, called at the end\n", "")
    assert "done in" in (tmp_path / "job.log").read_text()
    assert run("fails").returncode == 1


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


def of_precision(precision: str) -> tuple[str, ...]:
    """What torch is told in a process of its own: precision of products, of convolutions, and determinism."""
    code = (
        "import torch; from saeflow.rule import make_deterministic as prepare;"
        f"prepare(1, {{'device': 'cpu', 'matmul_precision': {precision!r}}});"
        "print(torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32,"
        "torch.are_deterministic_algorithms_enabled())"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(rule.__file__).parents[1])}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return tuple(run.stdout.split())


def test_products_and_convolutions_are_in_the_precision_that_the_study_states():
    assert of_precision("float32") == ("highest", "False", "True")
    assert of_precision("tf32") == ("high", "True", "True")


def test_the_log_says_on_what_and_in_which_precision_a_job_ran(tmp_path):
    pytest.importorskip("torch")

    def main(*, cfg):
        pass

    rule.run(main, job(tmp_path, cfg={"device": "cpu"}))
    line = (tmp_path / "job.log").read_text()
    assert " on cpu, 1 thread(s), " in line
    assert ", float32\n" in line


@pytest.mark.parametrize("found", [None, ":16:8"])
def test_a_gpu_job_that_was_started_without_its_environment_is_refused(found):
    gpu.check_environment(ENVIRONMENT)
    environment = {} if found is None else {"CUBLAS_WORKSPACE_CONFIG": found}
    with pytest.raises(RuntimeError, match=f"CUBLAS_WORKSPACE_CONFIG: {found!r} must be ':4096:8'"):
        gpu.check_environment(environment)


def test_jobs_at_the_same_time_take_different_cards_until_all_are_taken(tmp_path):
    code = (
        "import sys, pathlib; from saeflow import gpu;"
        "print(gpu.claim(['0', '1'], pathlib.Path(sys.argv[1])), flush=True); sys.stdin.read()"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(rule.__file__).parents[1])}

    def start() -> tuple[subprocess.Popen, str]:
        command = [sys.executable, "-c", code, str(tmp_path)]
        process = subprocess.Popen(command, env=environment, stdin=-1, stdout=subprocess.PIPE, text=True)
        return process, process.stdout.readline().strip()

    (first, a), (second, b), (third, c) = start(), start(), start()
    assert (a, b) == ("0", "1")
    assert c in ("0", "1")
    first.communicate()
    fourth, d = start()
    assert d == "0"
    for process in (second, third, fourth):
        process.communicate()


def test_a_job_on_a_gpu_logs_its_card(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device: needs a GPU and its driver")

    def main(*, cfg):
        assert torch.ones(1, device="cuda").get_device() == torch.cuda.current_device()

    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    rule.run(main, job(tmp_path, cfg={"device": "cuda"}))
    assert f"card {torch.cuda.current_device()}: " in (tmp_path / "job.log").read_text()


def of_the_machine():
    np.empty(1 << 50)


def of_torch_on_a_cpu():
    torch = pytest.importorskip("torch")
    torch.empty(1 << 55)


def of_torch_on_a_gpu():
    torch = pytest.importorskip("torch")
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


def of_a_pool():
    try:
        of_the_machine()
    except MemoryError as error:
        raise RuntimeError("a worker failed") from error


@pytest.mark.parametrize("fail", [of_the_machine, of_torch_on_a_cpu, of_torch_on_a_gpu, of_a_pool])
def test_out_of_memory_names_the_keys_that_lower_the_need_with_their_values(tmp_path, fail):
    variants = {f"v{i}": {"architecture": "topk", "d_sae": 1 << i, "k": 2} for i in range(14)}
    training = {"batch_size": 4096, "accumulate": 1, "learning_rate": 1e-3}

    def main(*, cfg):
        fail()

    with pytest.raises(SystemExit) as ended:
        rule.run(main, job(tmp_path, cfg={"saes": {"variants": variants, "training": training, "shards": 1}}))
    said = str(ended.value)
    assert "out of memory: lower saes.variants.v0.d_sae (1), " in said
    assert " and 3 more; or raise saes.training.accumulate (1), saes.shards (1); or run fewer jobs at a time" in said
    with pytest.raises(SystemExit, match=r"out of memory: lower saes\.training\.batch_size \(4096\); or raise"):
        rule.run(main, job(tmp_path, cfg={"saes": {"training": training}}))
    with pytest.raises(SystemExit, match="out of memory: lower d_sae of the SAEs, or batch_size; or run fewer jobs"):
        rule.run(main, job(tmp_path, cfg={}))


def full(path):
    raise OSError(errno.ENOSPC, "No space left on device")


def full_by_rust(path):
    raise RuntimeError("I/O error: No space left on device (os error 28)")


def full_below(path):
    try:
        full(path)
    except OSError as error:
        raise ValueError("the store") from error


@pytest.mark.parametrize("fail", [full, full_by_rust, full_below])
def test_a_full_disk_is_told_with_what_was_being_written_and_what_to_do(tmp_path, fail):
    def main(*, table):
        fail(table)

    said = (
        r"(?s)out/t: the disk or your quota is full, [\d.e+]+ MB are free; make room, then run the same command again"
    )
    with pytest.raises(SystemExit, match=said):
        rule.run(main, job(tmp_path))


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_file_that_may_not_be_written_is_named_with_what_to_do(tmp_path, number):
    def main(*, table):
        raise OSError(number, "no", "out/elsewhere")

    with pytest.raises(SystemExit, match="out/elsewhere: this user may not write there; mend its permissions"):
        rule.run(main, job(tmp_path))


def test_a_log_that_cannot_be_written_does_not_hide_the_cause(tmp_path, capfd):
    if not Path("/dev/full").exists():
        pytest.skip("/dev/full, the device that is always full, is not on this system")

    def main(*, store):
        logging.getLogger("x").warning("a line")
        raise FileNotFoundError(f"{store}: not there")

    with pytest.raises(SystemExit, match="some_rule: FileNotFoundError: in/a: not there"):
        rule.run(main, SimpleNamespace(**(vars(job(tmp_path)) | {"log": ["/dev/full"]})))
    assert "Logging error" not in capfd.readouterr().err
    logging.getLogger().handlers.clear()  # its log cannot be closed


def test_a_log_that_cannot_be_opened_is_told_without_a_traceback(tmp_path, capfd):
    def main(*, store):
        raise AssertionError("must not run")

    with pytest.raises(SystemExit, match=r"some_rule: FileNotFoundError: .*absent/log"):
        rule.run(main, SimpleNamespace(**(vars(job(tmp_path)) | {"log": [str(tmp_path / "absent" / "log")]})))
    assert capfd.readouterr().err == ""


def test_a_damaged_input_of_the_study_is_named_with_what_to_do_and_no_other(tmp_path):
    def main(*, store, raw):
        raise ValueError(f"{store}/c/2/0 and {raw}: damaged")

    files = {
        "input": Named(store="results/s/part-0", other="results/s/part-1", raw="/data/raw"),
        "output": Named(table="results/s/t"),
    }
    with pytest.raises(SystemExit) as error:
        rule.run(main, SimpleNamespace(**(vars(job(tmp_path)) | files)))
    cause, *told, _ = str(error.value).splitlines()
    assert cause.endswith("damaged")
    assert told == ["results/s/part-0: if it is damaged, delete it and run the same command again: it is built anew"]
