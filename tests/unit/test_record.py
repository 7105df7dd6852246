"""What a job leaves in its log of when, where and with what it ran."""

import logging
import platform
from datetime import UTC, datetime

import pytest

from saeflow import record


def log_of(folder, rule, started):
    """A job's log, as `saeflow.rule` has it written."""
    folder.mkdir(exist_ok=True)
    logging.basicConfig(
        filename=folder / f"{rule}.log",
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        force=True,
    )
    logging.info("ran into nothing")
    record.write(rule, 2, "cpu", started)
    logging.shutdown()


def test_the_records_of_jobs_are_read_from_their_logs(tmp_path, monkeypatch):
    monkeypatch.setenv("APPTAINER_CONTAINER", "/images/saeflow.sif")
    log_of(tmp_path / "train", "train_saes", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    (tmp_path / "failed.log").write_text("Traceback\n")
    (job,) = record.read(tmp_path)
    assert job == record.of(tmp_path / "train/train_saes.log")
    assert record.of(tmp_path / "failed.log") is record.of(tmp_path / "gone.log") is None
    assert job["cpu_seconds"] > 0
    assert (job["rule"], job["started"], job["threads"]) == ("train_saes", "2026-01-02T03:04:05+00:00", 2)
    assert datetime.fromisoformat(job["ended"]) <= datetime.now(UTC)
    assert job["container"] == "/images/saeflow.sif"
    assert job["versions"]["python"] == platform.python_version()
    assert job["memory_mb"] > 0
    assert platform.node() not in str(job)


def test_logs_without_a_record_are_told(tmp_path):
    (tmp_path / "old.log").write_text("done in 3 s\n")
    with pytest.raises(ValueError, match="no job's log says when"):
        record.read(tmp_path)
