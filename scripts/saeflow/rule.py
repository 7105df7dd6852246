"""The bridge from a Snakemake job to the `main()` of its script."""

import atexit
import gc
import importlib.abc
import inspect
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from saeflow import gpu, record, tracking
from saeflow.advice import advice
from saeflow.redaction import redact

_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
log = logging.getLogger(__name__)


def run(main: Callable[..., None], job: Any) -> None:
    """Call `main` with the job's named files and parameters, inside the job's log, threads, seeds and device.

    Where `main` is that of the running script, the process ends with it.

    Arguments:
        main: a function of keyword-only arguments. It gets each named input, output and param that it asks for: a
            single file as a Path, several as a list of Paths, a param as it is. `cfg` is the rule's dict of settings.
        job: the `snakemake` object of a `script:` job.
    Raises:
        SystemExit: main failed. The traceback is in the job's log, its last line on standard error too, both without
            the secrets that the environment holds.
    """
    started, date = time.perf_counter(), datetime.now(UTC)
    gc.freeze()
    gc.enable()
    if "pyarrow" in sys.modules and "pandas" not in sys.modules:
        _spare_pandas()
    try:
        _open_log(Path(job.log[0]))
    except OSError as error:
        raise SystemExit(_cause(error, job)) from None
    try:
        arguments = _arguments(main, job)
        make_deterministic(job.threads, arguments.get("cfg", {}))
        with tracking.followed(Path(job.log[0]).with_suffix(".curves")):
            main(**arguments)
    except Exception as error:
        log.error("failed after %.1f s\n%s", time.perf_counter() - started, traceback.format_exc())
        logging.shutdown()
        # A message of its own, not a traceback: the reader of the terminal wants the cause.
        raise SystemExit(f"{_cause(error, job)}\n(traceback in {job.log[0]})") from None
    log.info("done in %.1f s", time.perf_counter() - started)
    record.write(job.rule, job.threads, arguments.get("cfg", {}).get("device", "cpu"), date)
    if main.__module__ == "__main__":
        _leave()


def _leave() -> NoReturn:
    """End the process: what asked to be called at the end is called, streams are flushed.

    The interpreter is not taken down: that is 0.5 s of CPU where torch is in it, and frees what ends anyway.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _spare_pandas() -> None:
    """Let pyarrow look for pandas now, in vain: at its first list it would import it, a quarter of a second per job.

    pandas can still be imported, and tables become frames, where a script asks for it.
    """
    finder = _NoPandas()
    sys.meta_path.insert(0, finder)
    try:
        sys.modules["pyarrow"].array([])
    finally:
        sys.meta_path.remove(finder)


class _NoPandas(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        if fullname == "pandas":
            raise ModuleNotFoundError(fullname)


def _cause(error: Exception, job: Any) -> str:
    """The error and what to do about it."""
    what_to_do = advice(error, list(job.input), list(job.output), dict(job.params.items()).get("cfg"))
    return redact("\n".join([f"{job.rule}: {type(error).__name__}: {error}", *what_to_do]))


class _Formatter(logging.Formatter):
    """Lines, exceptions too, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def _open_log(path: Path) -> None:
    # A log that the full disk does not take must not hide the message that says so.
    logging.raiseExceptions = False
    handler = logging.FileHandler(path, mode="w", encoding="utf-8")
    handler.setFormatter(_Formatter(_LOG_FORMAT))
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    logging.captureWarnings(True)


def _arguments(main: Callable[..., None], job: Any) -> dict[str, Any]:
    """Values of main's parameters from the job's names; a missing one is a mistake in the rule."""
    named: dict[str, Any] = {}
    for files in (job.input, job.output):
        named |= {name: [Path(f) for f in v] if not isinstance(v, str) else Path(v) for name, v in files.items()}
    named |= dict(job.params.items())
    wanted = inspect.signature(main).parameters
    missing = [name for name, p in wanted.items() if name not in named and p.default is inspect.Parameter.empty]
    if missing:
        raise TypeError(f"rule {job.rule} names {sorted(named)}, its script also wants {missing}")
    return {name: named[name] for name in wanted if name in named}


def make_deterministic(threads: int, cfg: dict[str, Any]) -> None:
    """Fix threads, algorithms, precision and card of torch, where the script imported it."""
    torch = sys.modules.get("torch")
    if torch is None:
        return
    processor = torch.backends.cpu.get_cpu_capability()
    if cfg.get("device") == "cuda":
        processor = gpu.prepare()
    torch.set_num_threads(threads)
    precision = cfg.get("matmul_precision", "float32")
    # Convolutions have a switch of their own, which is on by default.
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    # What torch.use_deterministic_algorithms(True) sets, less its import of the compiler: 3.7 s of CPU per job.
    torch._C._set_deterministic_algorithms(True, warn_only=False)
    # It fills new memory with NaN too, up to 6 % of the training of small SAEs; nothing reads it before it is written.
    torch.utils.deterministic.fill_uninitialized_memory = False
    device = cfg.get("device", "cpu")
    log.info("torch %s on %s, %d thread(s), %s, %s", torch.__version__, device, threads, processor, precision)
