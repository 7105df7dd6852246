"""When, where and with what each job ran: kept in its log, because it is no part of what a study shows."""

import json
import logging
import os
import platform
import resource
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    *("jinja2", "matplotlib", "numpy", "pandas", "pillow", "pyarrow", "safetensors", "scikit-learn", "scipy"),
    *("snakemake", "tokenizers", "torch", "transformers", "zarr"),
)
"""Packages whose version can change a byte of a result."""

_MARK = f" {__name__}: ran "
log = logging.getLogger(__name__)


def versions() -> dict[str, str]:
    """Version of Python and of those of PACKAGES that are installed here."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue  # each family of rules may have an environment of its own
    return found


def processor() -> str:
    """Processor by name, model number and widest vector instructions; its architecture where the system tells no more.

    Virtual machines share names; libraries of linear algebra choose their code by what else is here.
    """
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
    if "model name" not in facts:
        return platform.processor() or platform.machine()
    flags = facts.get("flags", "").split()
    widest = next((flag for flag in ("avx512f", "avx2", "avx") if flag in flags), "no avx")
    return f"{facts['model name']} (family {facts.get('cpu family')}, model {facts.get('model')}, {widest})"


def gpus(device: str) -> list[str]:
    """Names of the CUDA devices that a job on this device computes on, once each; none without torch."""
    torch = sys.modules.get("torch")
    if torch is None or device != "cuda":
        return []
    return sorted({torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())})


def write(rule: str, threads: int, device: str, started: datetime) -> None:
    """Log the record of a job that ends now.  Memory is in MiB; neither host nor user is named.

    CPU time is the job's own count: Snakemake looks at a job every 30 seconds, and its benchmark files lack what was
    used since it last looked.
    """
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    record = {
        "rule": rule,
        "started": started.isoformat(timespec="seconds"),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu_seconds": round(sum(one.ru_utime + one.ru_stime for one in used), 2),
        "threads": threads,
        "processor": processor(),
        "processors": os.cpu_count(),
        "memory_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20,
        "gpus": gpus(device),
        # Apptainer sets it to the path of the image.
        "container": os.environ.get("APPTAINER_CONTAINER"),
        "versions": versions(),
    }
    log.info("ran %s", json.dumps(record, sort_keys=True))


def of(log: Path) -> dict[str, Any] | None:
    """Record of the job whose log this is; None where it has none, or is gone."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    found = [line.partition(_MARK)[2] for line in lines if _MARK in line]
    return json.loads(found[-1]) if found else None


def read(logs: Path) -> list[dict[str, Any]]:
    """Records of all jobs whose logs lie below a folder, in the order in which the jobs ended.

    Raises:
        ValueError: none of the logs has one.
    """
    records = [found for path in sorted(logs.rglob("*.log")) if (found := of(path))]
    if not records:
        raise ValueError(f"{logs}: no job's log says when and where it ran; build the study with this version first")
    return sorted(records, key=lambda record: (record["ended"], record["rule"]))
