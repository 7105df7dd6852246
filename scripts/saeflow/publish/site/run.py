"""What a run cost: from the benchmark files, the jobs' records and what Snakemake remembers of every file.

Times differ at each run, so these data are no part of what a study must rebuild.
"""

import base64
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from saeflow import record


@dataclass(frozen=True)
class Job:
    """A job of the run.

    Arguments:
        name: rule, and what tells the job from others of it.
        reads: jobs that made its inputs, by number.
        input_mb: size of those inputs that other jobs made.
    """

    rule: str
    name: str
    seconds: float
    cpu_seconds: float
    memory_mib: float
    reads: Sequence[int]
    input_mb: float


def describe(results: Path, metadata: Path) -> dict[str, Any]:
    """Data of the page.

    Arguments:
        results: folder of the study.
        metadata: folder in which Snakemake keeps what it knows of every file.
    Raises:
        ValueError: no job's log says when and where it ran.
    """
    records = record.read(results / "logs")
    jobs = read_jobs(results, metadata)
    kept = ("processor", "processors", "memory_mb", "gpus", "container")
    machines = {json.dumps({name: one[name] for name in kept}, sort_keys=True): one for one in records}
    return {
        "started": min(one["started"] for one in records),
        "ended": records[-1]["ended"],
        "machines": [
            {name: one[name] for name in kept} | {"container": bool(one["container"])} for one in machines.values()
        ],
        "jobs": [vars(job) for job in jobs],
        "rules": by_rule(jobs),
        "edges": edges(jobs),
        "path": longest_path(jobs),
        "tenfold": tenfold(jobs),
    }


def read_jobs(results: Path, metadata: Path) -> list[Job]:
    """Jobs that made the study's files, in the order in which they ended.

    Snakemake keeps a file per output, named by the output's path in base64; outputs of one job share its log.
    """
    outputs: dict[str, list[str]] = defaultdict(list)
    jobs: dict[str, dict[str, Any]] = {}
    for path in sorted(metadata.rglob("*")):
        if not path.is_file():
            continue
        known = json.loads(path.read_text(encoding="utf-8"))
        if not known["incomplete"] and known["log"] and Path(known["log"][0]).is_relative_to(results):
            # Long names are split into folders that begin with @.
            name = path.relative_to(metadata).as_posix().replace("@", "").replace("/", "")
            outputs[known["log"][0]].append(base64.b64decode(name).decode())
            jobs[known["log"][0]] = known
    order = sorted(jobs, key=lambda log: (jobs[log]["endtime"], log))
    makers = {output: i for i, log in enumerate(order) for output in outputs[log]}
    return [_job(results, log, jobs[log], makers) for log in order]


def _job(results: Path, log: str, known: Mapping[str, Any], makers: Mapping[str, int]) -> Job:
    inside = Path(log).relative_to(results / "logs")
    made = [name for name in known["input"] if name in makers]
    benchmark = results / "benchmarks" / inside.with_suffix(".jsonl")
    cost = json.loads(benchmark.read_text(encoding="utf-8")) if benchmark.is_file() else {}
    own = record.of(Path(log)) or {}  # written by the scripts of the workflow, not by other programs
    return Job(
        rule=known["rule"],
        name=inside.with_suffix("").as_posix(),
        # A job that was only touched since, or had its record of the benchmark lost, has one of the two.
        seconds=_number(cost.get("s")) or known["endtime"] - known["starttime"],
        cpu_seconds=_number(own.get("cpu_seconds", cost.get("cpu_time"))),
        memory_mib=_number(cost.get("max_rss")),
        reads=sorted({makers[name] for name in made}),
        input_mb=sum(_size(Path(name)) for name in made) / 1e6,
    )


def _number(value: Any) -> float:
    """A number of a benchmark file; a job that was too quick to be looked at has none."""
    return float(value) if isinstance(value, int | float) else 0.0


def _size(path: Path) -> int:
    """Bytes of a file, or of all files of a folder; 0 if it has gone."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size if path.exists() else 0


def by_rule(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """A row per rule, those that cost most first."""
    rules: dict[str, list[Job]] = defaultdict(list)
    for job in jobs:
        rules[job.rule].append(job)
    rows = [
        {
            "name": rule,
            "jobs": len(of_rule),
            "cpu_seconds": sum(job.cpu_seconds for job in of_rule),
            "longest_seconds": max(job.seconds for job in of_rule),
            "memory_mib": max(job.memory_mib for job in of_rule),
        }
        for rule, of_rule in rules.items()
    ]
    return sorted(rows, key=lambda row: (-row["cpu_seconds"], row["name"]))


def tenfold(jobs: Sequence[Job]) -> dict[str, float]:
    """What the run would cost if all but the start of each job took ten times as long.

    The start of a job, which loads libraries, is taken to be the least CPU time of any job that was measured: not all
    rules load as much, so this is on the high side.

    Returns:
        `start`, `cpu_seconds` of all jobs, and `path_seconds` of the longest path.
    """
    start = min((job.cpu_seconds for job in jobs if job.cpu_seconds), default=0.0)

    def grown(seconds: float) -> float:
        return seconds + 9 * max(0.0, seconds - start)

    path = longest_path(jobs)
    return {
        "start": start,
        "cpu_seconds": sum(grown(job.cpu_seconds) for job in jobs),
        "path_seconds": sum(grown(step["seconds"]) for step in path),
    }


def edges(jobs: Sequence[Job]) -> list[tuple[str, str]]:
    """Pairs of rules of which the second reads what the first makes."""
    return sorted({(jobs[i].rule, job.rule) for job in jobs for i in job.reads if jobs[i].rule != job.rule})


def longest_path(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """The chain of jobs, each reading what the one before it made, that takes the longest together.

    Jobs may stand in any order: one whose input was rebuilt to the same bytes later ended before it.
    """
    until: dict[int, float] = {}
    before: dict[int, int | None] = {}
    for i in TopologicalSorter({i: job.reads for i, job in enumerate(jobs)}).static_order():
        before[i] = max(jobs[i].reads, key=lambda j: until[j], default=None)
        until[i] = jobs[i].seconds + until.get(before[i], 0.0)
    chain: list[int] = []
    at = max(sorted(until), key=lambda i: until[i], default=None)
    while at is not None:
        chain.append(at)
        at = before[at]
    return [{"name": jobs[i].name, "seconds": jobs[i].seconds, "until": until[i]} for i in reversed(chain)]
