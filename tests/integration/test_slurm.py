"""A study on a real Slurm cluster, with the profile that ships: one run meets what clusters do to jobs, and must end in
the bytes of a local run.

The study is the smoke study with one network and two methods: every kind of rule, in half as many jobs, because each
costs two starts of Snakemake and a poll.
"""

import contextlib
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import extra_packages
import pytest
import slurm_cluster
import yaml
from slurm_cluster import Cluster

ROOT = Path(__file__).parents[2]
PATIENCE = 900  # seconds; on an idle machine nothing here takes a quarter of it
POLLING = ("--slurm-init-seconds-before-status-checks", "5", "--latency-wait", "10")


@dataclass(frozen=True)
class Run:
    """A study under way or ended: the folder that it builds in, its process, and the file with what it says."""

    work: Path
    process: subprocess.Popen
    output: Path

    @property
    def results(self) -> Path:
        return self.work / "results" / "smoke"

    def said(self) -> str:
        return self.output.read_text()

    def end(self) -> int:
        """Exit status, once it has ended."""
        return self.process.wait(PATIENCE)

    def wait_until(self, happened: Callable[[], object]) -> object:
        """What `happened` returns, as soon as it is true."""
        deadline = time.monotonic() + PATIENCE
        while not (found := happened()):
            assert self.process.poll() is None, f"Snakemake ended before that:\n{self.said()[-6000:]}"
            assert time.monotonic() < deadline, f"it did not happen:\n{self.said()[-6000:]}"
            time.sleep(0.2)
        return found


@contextlib.contextmanager
def started(work: Path, study: Path, *arguments: str) -> Iterator[Run]:
    """Snakemake on a study; it is killed at the end if it still runs, and when the tests are killed."""
    snakemake = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile"]
    command = list(map(str, [*snakemake, *arguments, "--directory", work, "--configfile", study]))
    work.mkdir(exist_ok=True)
    output = work / "output.txt"
    with open(output, "w") as file:
        # A test run in the background may ignore Ctrl-C, and children inherit that.
        process = subprocess.Popen(
            command, stdout=file, stderr=file, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
        )
    try:
        yield Run(work, process, output)
    finally:
        process.kill()
        process.wait()


def on_slurm(*arguments: str) -> tuple[str, ...]:
    return (*arguments, "--workflow-profile", str(ROOT / "workflow/profiles/slurm"), *POLLING)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes, with the executor plugin on the search path of this module's Snakemakes and of their jobs."""
    plugin = extra_packages.install("slurm", tmp_path_factory.mktemp("plugin"))
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as undo:
        patch.setenv("PYTHONPATH", str(plugin))
        # The value of a parent is not a value of the study.
        patch.delenv("OMP_NUM_THREADS", raising=False)
        try:
            yield undo.enter_context(slurm_cluster.running(tmp_path_factory.mktemp("cluster")))
        except slurm_cluster.NoClusterError as reason:
            pytest.skip(f"no Slurm cluster here: {reason}")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes the study with some settings changed; each keyword is a section."""
    folder = tmp_path_factory.mktemp("studies")

    def write(**sections: dict) -> Path:
        content = yaml.safe_load((ROOT / "config/studies/smoke.yaml").read_text())
        content["classifiers"] |= {"architectures": ["SimpleNN"], "seeds": [0]}
        content["injection"]["methods"] = ["references", "precomputed_alignment"]
        for name, section in sections.items():
            content[name] = content.get(name, {}) | section
        path = folder / f"{'-'.join(['smoke', *sections])}.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    return write


@pytest.fixture(scope="module")
def local(cluster: Cluster, study: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The study built by this machine alone."""
    with started(tmp_path_factory.mktemp("local") / "work", study(), "--cores", "2") as run:
        assert run.end() == 0, run.said()[-6000:]
    return run


@pytest.fixture(scope="module")
def submitted(cluster: Cluster, study: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The study built by the cluster: the node of the first training is lost, and a capture has too little memory."""
    too_little = "capture_activations:mem_mb=250*8**(attempt-1)"
    work = tmp_path_factory.mktemp("submitted") / "work"
    with started(work, study(), *on_slurm("--set-resources", too_little)) as run:
        log = run.results / "logs/train_classifiers/digits.SimpleNN.log"
        run.wait_until(log.exists)
        (training,) = (job for job in jobs_of(cluster, "train_classifiers") if job["JobState"] == "RUNNING")
        cluster.lose_node(training["NodeList"])
        run.wait_until(lambda: [job["JobState"] for job in jobs_of(cluster, "train_classifiers")[1:]] == ["RUNNING"])
        cluster.start_node(training["NodeList"])
        assert run.end() == 0, run.said()[-6000:]
    return run


def jobs_of(cluster: Cluster, rule: str) -> list[dict[str, str]]:
    """The controller's records of a rule's jobs, in the order of submission."""
    jobs = [job for job in cluster.jobs() if re.match(rf"(rule|group)_{rule}(_|$)", job.get("Comment", ""))]
    return sorted(jobs, key=lambda job: int(job["JobId"]))


def processes_of(job: str, *variables: str) -> set[int]:
    """Process ids of a job that have the variables, each as NAME=value, in their environment."""
    found = (slurm_cluster.processes_with(variable) for variable in (f"SLURM_JOB_ID={job}", *variables))
    return set.intersection(*map(set, found))


def scripts(said: str) -> set[str]:
    """Rules that a run announced in its table of jobs, but targets."""
    table = said.partition("Job stats:")[2].partition("total")[0]
    return set(re.findall(r"^(\w+) +\d+$", table, re.MULTILINE)) - {"all"}


def test_the_study_has_every_kind_of_rule(submitted, tmp_path):
    with started(tmp_path / "work", ROOT / "config/studies/smoke.yaml", "--dry-run") as whole:
        assert whole.end() == 0
    assert scripts(submitted.said()) == scripts(whole.said())


def test_a_study_built_by_the_cluster_has_the_bytes_of_a_local_one(local, submitted):
    assert (submitted.results / "MANIFEST.sha256").read_text() == (local.results / "MANIFEST.sha256").read_text()


def test_a_job_killed_for_memory_is_retried_with_more(cluster, submitted):
    killed, retried = jobs_of(cluster, "capture_activations")
    # The state of the whole job depends on which of its processes was taken: the log says why.
    assert killed["JobState"] in ("OUT_OF_MEMORY", "FAILED")
    why = "oom-kill event" if cluster.kernel_limits else "exceeded memory limit"
    assert why in Path(killed["StdOut"]).read_text()
    assert retried["JobState"] == "COMPLETED"
    assert "mem=250M" in killed["TRES"]
    assert "mem=2000M" in retried["TRES"]


def test_a_job_whose_node_is_lost_runs_again_once(cluster, submitted):
    lost, again = jobs_of(cluster, "train_classifiers")
    assert (lost["JobState"], lost["Requeue"], lost["Restarts"]) == ("NODE_FAIL", "0", "0")
    assert again["JobState"] == "COMPLETED"
    assert again["NodeList"] != lost["NodeList"]


def test_the_small_jobs_at_the_end_share_one_submission(cluster, submitted):
    (publish,) = jobs_of(cluster, "publish")
    assert publish["JobState"] == "COMPLETED"
    assert not jobs_of(cluster, "write_report")


def test_the_log_of_a_job_that_did_well_is_removed_and_of_one_that_failed_kept(cluster, submitted):
    kept = {path.stem for path in (submitted.work / ".snakemake/slurm_logs").rglob("*.log")}
    assert kept == {jobs_of(cluster, rule)[0]["JobId"] for rule in ("capture_activations", "train_classifiers")}


@pytest.fixture
def fresh(local: Run, tmp_path: Path) -> Path:
    """A copy of the folder with the local study, for a run to go on from."""
    return shutil.copytree(local.work, tmp_path / "work", symlinks=True)


def test_a_failed_gpu_job_had_its_card_and_leaves_its_log_and_nothing_half_built(cluster, fresh, study):
    # The nodes' GPUs are none: the job gets as far as torch, which finds no device.
    models, rule = fresh / "results/smoke/models", "train_classifiers"
    shutil.rmtree(models)
    options = on_slurm("models", "--retries", "0", "--rerun-triggers", "mtime")
    card = ("--set-resources", f"{rule}:gpu_model={slurm_cluster.GPU}")
    with started(fresh, study(compute={"device": "cuda"}), *options, *card) as run:
        # Slurm forgets which card it was when the job ends.
        (running,) = run.wait_until(lambda: [job for job in jobs_of(cluster, rule) if job["JobState"] == "RUNNING"])
        run.wait_until(lambda: processes_of(running["JobId"], "CUDA_VISIBLE_DEVICES=0"))
        assert run.end() != 0
    job = jobs_of(cluster, rule)[-1]
    assert (job["JobId"], job["JobState"]) == (running["JobId"], "FAILED")
    assert job["TresPerJob"] == f"gres:gpu:{slurm_cluster.GPU}:1"
    assert running["GRES"] == f"gpu:{slurm_cluster.GPU}:1(IDX:0)"
    error = "torch finds no CUDA device here"
    assert error in run.said()
    assert error in (run.results / f"logs/{rule}/digits.SimpleNN.log").read_text()
    (slurm_log,) = (fresh / f".snakemake/slurm_logs/rule_{rule}").rglob("*.log")
    assert slurm_log.stem == job["JobId"]
    assert error in slurm_log.read_text()
    assert not [path for path in models.rglob("*") if path.is_file()]


def test_ctrl_c_cancels_the_jobs_and_leaves_nothing_half_built(cluster, fresh, study):
    saes, log = fresh / "results/smoke/saes", fresh / "results/smoke/logs/train_saes/SimpleNN-full/last.pre.log"
    shutil.rmtree(saes)
    log.unlink()
    endless = yaml.safe_load(study().read_text())["saes"]
    endless["training"]["steps"] = 10**6
    with started(fresh, study(saes=endless), *on_slurm("saes", "--rerun-triggers", "mtime")) as run:
        run.wait_until(log.exists)
        (running,) = (job for job in cluster.jobs() if job["JobState"] == "RUNNING")
        run.process.send_signal(signal.SIGINT)
        assert run.end() != 0
    cluster.wait_until_idle(60)
    (cancelled,) = (job for job in cluster.jobs() if job["JobId"] == running["JobId"])
    assert cancelled["JobState"] == "CANCELLED"
    assert not processes_of(running["JobId"])
    assert not [path for path in saes.rglob("*") if path.is_file()]
