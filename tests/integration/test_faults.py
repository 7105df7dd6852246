"""A study that is killed, starved of disk and spoilt: what is built stays, and the end has the undisturbed bytes."""

import contextlib
import json
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
import pytest
import yaml

ROOT = Path(__file__).parents[2]
PARTS = ("Snakefile", "config", "envs", "scripts", "workflow")
# Every stage but injection; small chunks and frequent checkpoints, so that a kill can come between two of them.
STUDY = {
    "study": "faults",
    "dataset": {"name": "digits"},
    "classifiers": {
        "architectures": ["SimpleNN"],
        "roles": {"full": {"classes": list(range(10))}},
        "seeds": [0],
        "epochs": 3,
    },
    "activations": {"chunk_rows": 16},
    "saes": {
        "variants": {
            "topk": {"architecture": "topk", "d_sae": 16, "k": 4},
            "relu": {"architecture": "relu", "d_sae": 16, "penalty": 0.5},
        },
        "training": {
            "steps": 600,
            "batch_size": 128,
            "warmup_steps": 10,
            "sparsity_warmup_steps": 10,
            "checkpoint_steps": 10,
        },
    },
    "features": {
        "top_examples": 4,
        "effect_examples": 8,
        "pattern_examples": 4,
        "cards": {"variants": ["topk"], "seeds": [0]},
    },
}
KILLS = 20
# Far beyond what a run takes; a test that hangs ends then.
SECONDS = 1800
# All runs of this module have the tokens in their environment, one has the database as well, which is not there;
# nothing that they write may hold the values.
TOKENS = {"HF_TOKEN": "hf_batterystaple0123", "WANDB_API_KEY": "0123456789abcdef0123"}
SECRETS = TOKENS | {"SAEFLOW_CATALOG_URL": "postgresql://ada:catalog-password@db.example/lab"}
SECRET_PARTS = [b"catalog-password", SECRETS["HF_TOKEN"].encode(), SECRETS["WANDB_API_KEY"].encode()]


@dataclass(frozen=True)
class Study:
    """The study in a folder of its own, and the project that builds it."""

    root: Path
    work: Path
    secrets: Mapping[str, str] = field(default_factory=lambda: TOKENS)

    @property
    def results(self) -> Path:
        return self.work / "results" / "faults"

    def command(self, *arguments: str) -> list[str]:
        """Targets first: --configfile takes whatever follows it."""
        snakemake = [sys.executable, "-m", "snakemake", "--snakefile", self.root / "Snakefile", *arguments]
        return list(
            map(str, [*snakemake, "--directory", self.work, "--cores", 1, "--configfile", self.root / "study.yaml"])
        )

    def start(self, *arguments: str) -> subprocess.Popen:
        """Snakemake in a process group of its own."""
        self.work.mkdir(parents=True, exist_ok=True)
        with (self.work / "output").open("w") as output:
            return subprocess.Popen(
                self.command(*arguments),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=os.environ | self.secrets,
            )

    def run(self, *arguments: str, fails: bool = False) -> str:
        """Output of Snakemake, which ran to its end and failed only if it should."""
        process = self.start(*arguments)
        try:
            code = process.wait(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            kill(process, self)
            raise
        output = (self.work / "output").read_text()
        assert (code != 0) == fails, output[-8000:]
        return output

    def in_progress(self) -> str | None:
        """Rule whose job the last run had begun and not finished when it ended."""
        begun_or_done = re.findall(
            r"^(?:local)?rule (\w+):$|^(Finished) jobid", (self.work / "output").read_text(), re.M
        )
        return begun_or_done[-1][0] or None if begun_or_done else None

    def locked(self) -> bool:
        return any((self.work / ".snakemake" / "locks").glob("*"))

    def without(self, *stages: str) -> None:
        """Remove what stages have built, and all that follows: Snakemake misses no file that no missing file needs."""
        for stage in stages:
            shutil.rmtree(self.results / stage, ignore_errors=True)
        for name in ("MANIFEST.sha256", "verification.txt"):
            (self.results / name).unlink(missing_ok=True)

    def manifest(self) -> str:
        return (self.results / "MANIFEST.sha256").read_text()

    def stamps(self) -> dict[str, int]:
        """Time at which each file of the results was written."""
        files = (path for path in self.results.rglob("*") if path.is_file())
        return {path.relative_to(self.results).as_posix(): path.stat().st_mtime_ns for path in files}


def kill(process: subprocess.Popen, study: Study) -> None:
    """SIGKILL for Snakemake and every job, at once as far as can be, and again until none is left."""

    def jobs() -> Iterator[psutil.Process]:
        for other in psutil.process_iter(["cwd"]):
            if other.info["cwd"] and Path(other.info["cwd"]).is_relative_to(study.work):
                yield other

    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    while left := list(jobs()):
        for job in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                job.kill()
        time.sleep(0.05)


def wait_for(seen: Callable[[], object], process: subprocess.Popen, seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not seen():
        assert process.poll() is None, "Snakemake ended before that"
        assert time.monotonic() < deadline, f"not seen within {seconds} s"
        time.sleep(0.005)


@dataclass(frozen=True)
class Undisturbed:
    """The study built without disturbance, and how long that took."""

    study: Study
    seconds: float
    n_jobs: int


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    root = tmp_path_factory.mktemp("project")
    for part in PARTS:
        source, ignore = ROOT / part, shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, root / part, ignore=ignore) if source.is_dir() else shutil.copy2(source, root / part)
    (root / "study.yaml").write_text(yaml.safe_dump(STUDY))
    study = Study(root, tmp_path_factory.mktemp("undisturbed"))
    started = time.monotonic()
    output = study.run()
    return Undisturbed(study, time.monotonic() - started, output.count("Finished jobid"))


@pytest.fixture
def built(undisturbed: Undisturbed, tmp_path: Path) -> Study:
    """A copy of the built study, to be spoilt."""
    shutil.copytree(undisturbed.study.work, tmp_path / "work", symlinks=True)
    return Study(undisturbed.study.root, tmp_path / "work")


def unlock(study: Study) -> None:
    """What the message about a lock tells the user to do."""
    if study.locked():
        study.run("--unlock")
    assert not study.locked()


def test_a_study_killed_at_random_times_ends_with_the_same_bytes(undisturbed, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    rng = random.Random(20)
    a_job = undisturbed.seconds / undisturbed.n_jobs
    rounds, cut = 0, Counter()
    while cut.total() < KILLS:
        study = Study(undisturbed.study.root, tmp_path / f"round-{rounds}")
        while cut.total() < KILLS:
            process = study.start("--rerun-incomplete")
            # One kill in five comes while Snakemake starts, the others during its first jobs or between them.
            at_start = rng.random() < 0.2
            while not at_start and process.poll() is None and not study.in_progress():
                time.sleep(0.05)
            try:
                process.wait(timeout=rng.uniform(0, 2 * a_job))
                break
            except subprocess.TimeoutExpired:
                kill(process, study)
                cut[study.in_progress()] += 1
                unlock(study)
        study.run("--rerun-incomplete")
        assert study.manifest() == undisturbed.study.manifest(), cut
        assert leaks(study.work) == []
        rounds += 1
    logging.info("%d kills in %d rounds, by the job that they hit: %s", cut.total(), rounds, dict(cut))
    assert cut.total() - cut[None] >= KILLS // 4


def kill_inside(study: Study, rule: str, seen: Callable[[], bool], *stages: str) -> None:
    """Build stages anew and kill once something is seen that a job of the rule writes on its way.

    A job that ended before the kill came is built again: the machine decides how long its moment lasts.
    """
    for _ in range(10):
        study.without(*stages)
        process = study.start("--rerun-incomplete")
        while process.poll() is None and not seen():
            time.sleep(0.002)
        kill(process, study)
        hit = study.in_progress() == rule
        unlock(study)
        if hit:
            return
    raise AssertionError(f"{rule}: no kill came inside its job in ten attempts")


def test_a_capture_and_a_training_killed_in_their_midst_go_on_to_the_same_bytes(undisturbed, built):
    def seen(pattern: str) -> Callable[[], bool]:
        return lambda: any(built.results.glob(pattern))

    kill_inside(built, "capture_activations", seen("activations/*/*/*/part-0/journal.jsonl"), "activations", "saes")
    kill_inside(built, "train_saes", seen("saes/**/*.checkpoint-1"), "saes")
    assert list(built.results.glob("saes/**/sae_weights.safetensors")) == []
    built.run("--rerun-incomplete")
    (log,) = (built.results / "logs" / "train_saes").rglob("*.log")
    assert "checkpoint-1: going on after step " in log.read_text()
    assert list(built.results.glob("saes/**/*checkpoint*")) == []
    assert built.manifest() == undisturbed.study.manifest()


def test_a_second_snakemake_and_a_stale_lock_are_refused_with_what_to_do_and_harm_nothing(undisturbed, built):
    built.without("saes")
    first = built.start()
    wait_for(built.in_progress, first)
    # Held, so that it cannot end before the second one looks.
    os.killpg(first.pid, signal.SIGSTOP)
    try:
        second = subprocess.run(
            built.command(), capture_output=True, text=True, env=os.environ | TOKENS, timeout=SECONDS
        )
    finally:
        os.killpg(first.pid, signal.SIGCONT)
    refusal = "Directory cannot be locked"
    assert second.returncode != 0
    assert refusal in second.stdout + second.stderr
    assert first.wait(timeout=SECONDS) == 0
    assert built.manifest() == undisturbed.study.manifest()

    built.without("tables")
    process = built.start()
    wait_for(built.in_progress, process)
    kill(process, built)
    before = built.stamps()
    output = built.run(fails=True)
    assert refusal in output
    assert "can be removed with the --unlock argument" in output
    assert built.stamps() == before
    built.run("--unlock")
    built.run("--rerun-incomplete")
    assert built.manifest() == undisturbed.study.manifest()


def mount(*arguments: str) -> None:
    run = subprocess.run(["mount", *arguments], capture_output=True, text=True)
    if run.returncode:
        pytest.skip(f"a disk of a few hundred kB cannot be mounted here, which needs root: {run.stderr.strip()}")


@pytest.fixture
def small_disk(undisturbed: Undisturbed, tmp_path: Path) -> Iterator[Study]:
    """The study in an empty folder whose results are on a disk that holds its images and networks, but no more."""
    if os.geteuid() != 0:
        pytest.skip("a disk of a few hundred kB can be mounted by root only")
    study = Study(undisturbed.study.root, tmp_path / "work")
    (study.work / "results").mkdir(parents=True)
    mount("-t", "tmpfs", "-o", "size=700k", "tmpfs", str(study.work / "results"))
    yield study
    subprocess.run(["umount", "--lazy", str(study.work / "results")], check=True)


def test_a_full_and_a_read_only_disk_are_named_and_cost_nothing_that_was_built(undisturbed, small_disk):
    results = str(small_disk.work / "results")
    output = small_disk.run(fails=True)
    assert "results/faults/activations/SimpleNN-full-s0/last.pre/" in output
    assert "No space left on device" in output
    assert "make room, then run the same command again: finished jobs are kept" in output
    kept = small_disk.stamps()
    assert {"datasets/digits.npz", "models/digits/SimpleNN/full.safetensors"} <= kept.keys()

    mount("-o", "remount,ro", results)
    output = small_disk.run(fails=True)
    assert re.search(r"Read-only file system: '\S*results/faults/", output), output[-4000:]
    assert small_disk.stamps() == kept

    mount("-o", "remount,rw,size=50m", results)
    small_disk.run("--rerun-incomplete")
    assert small_disk.manifest() == undisturbed.study.manifest()
    after = small_disk.stamps()
    for name in ("datasets/digits.npz", "models/digits/SimpleNN/full.safetensors"):
        assert after[name] == kept[name]


def told_to_delete(output: str) -> Path:
    """What the message of a failed job says to delete."""
    lines = [line for line in output.splitlines() if ": if it is damaged, delete it and run the same command" in line]
    return Path(lines[0].partition(": if it is damaged")[0])


def test_a_corrupted_chunk_is_named_and_rebuilt(undisturbed, built):
    chunk = built.results / "activations/SimpleNN-full-s0/last.pre/test/part-0/activations/c/3/0"
    content = bytearray(chunk.read_bytes())
    content[7] ^= 1
    chunk.write_bytes(content)
    output = built.run("--forcerun", "evaluate_saes", fails=True)
    assert f"{chunk.relative_to(built.work)}: sha256 " in output
    damaged = built.work / told_to_delete(output)
    assert chunk.is_relative_to(damaged)
    shutil.rmtree(damaged)
    built.run()
    assert built.manifest() == undisturbed.study.manifest()


def test_a_truncated_sae_is_named_and_trained_again(undisturbed, built):
    weights = built.results / "saes/SimpleNN-full-s0/last.pre/topk-s0/sae_weights.safetensors"
    os.truncate(weights, weights.stat().st_size - 100)
    output = built.run(fails=True)
    assert f"{weights.relative_to(built.work)}: truncated or not safetensors" in output
    assert built.work / told_to_delete(output) == weights
    weights.unlink()
    built.run()
    assert built.manifest() == undisturbed.study.manifest()


def test_damage_that_no_job_met_is_found_by_the_manifest_and_rebuilt(undisturbed, built):
    part = built.results / "activations/SimpleNN-full-s0/last.pre/train/part-0"
    chunk = part / "activations/c/5/0"
    chunk.write_bytes(bytes(chunk.stat().st_size))
    check = ["sha256sum", "--check", "--quiet", "MANIFEST.sha256"]
    found = subprocess.run(check, cwd=built.results, capture_output=True, text=True)
    assert found.stdout.splitlines() == [f"{chunk.relative_to(built.results)}: FAILED"]
    shutil.rmtree(part)
    built.run("--forcerun", "write_manifest")
    subprocess.run(check, cwd=built.results, check=True)
    assert built.manifest() == undisturbed.study.manifest()


def leaks(folder: Path) -> list[str]:
    """Files that hold the value of a secret, members of archives too."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file():
            contents = [path.read_bytes()]
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    contents += [archive.read(name) for name in archive.namelist()]
            found += [str(path) for content in contents if any(secret in content for secret in SECRET_PARTS)]
    return found


def test_no_secret_of_the_environment_is_written_anywhere(undisturbed, built):
    built = replace(built, secrets=SECRETS)
    built.run("--report", str(built.work / "report.zip"))
    assert zipfile.is_zipfile(built.work / "report.zip")
    script = built.root / "scripts" / "verify_study.py"
    source = script.read_text()
    leaking = 'import os\n    logging.info(dict(os.environ))\n    raise OSError(os.environ["SAEFLOW_CATALOG_URL"])\n'
    try:
        script.write_text(source.replace("    ours = reproduce", f"    {leaking}    ours = reproduce", 1))
        output = built.run("--forcerun", "verify", "--show-failed-logs", fails=True)
    finally:
        script.write_text(source)
    assert "verify: OSError: $SAEFLOW_CATALOG_URL" in output
    log = (built.results / "logs" / "verify.log").read_text()
    assert "'HF_TOKEN': '$HF_TOKEN'" in log
    assert leaks(built.work) == []
    assert leaks(undisturbed.study.work) == []
    record = json.dumps({"leak": SECRETS["HF_TOKEN"]})
    (built.work / "planted").write_text(record)
    assert leaks(built.work) == [str(built.work / "planted")]
