"""Training curves while they grow, for those who watch: TensorBoard and Weights & Biases.

Off unless the environment variable SAEFLOW_TRACKERS names trackers: `tensorboard`, `wandb`, or both with a comma.
It is no key of the study: who watches changes no byte of a result and asks for no job to run again.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from saeflow import extras

VARIABLE = "SAEFLOW_TRACKERS"


class Tracker(Protocol):
    """What takes the curves of many trainings."""

    def scalars(self, training: str, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files, a folder for each training: `tensorboard --logdir results/<study>/logs` shows them."""

    package = "tensorboardX"

    def __init__(self, folder: Path) -> None:
        from tensorboardX import SummaryWriter

        self._folder, self._new, self._writers = folder, SummaryWriter, {}

    def scalars(self, training: str, step: int, values: Mapping[str, float]) -> None:
        if training not in self._writers:
            # What a stopped training wrote behind its checkpoint is written again.
            self._writers[training] = self._new(str(self._folder / training), purge_step=step)
        for name, value in values.items():
            self._writers[training].add_scalar(name, value, step)

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


class WeightsAndBiases:
    """A run for each training; kept here until `wandb sync` sends it, unless WANDB_MODE says otherwise."""

    package = "wandb"

    def __init__(self, folder: Path) -> None:
        import wandb

        self._folder, self._wandb, self._runs = folder, wandb, {}

    def scalars(self, training: str, step: int, values: Mapping[str, float]) -> None:
        if training not in self._runs:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._runs[training] = self._wandb.init(
                project="saeflow",
                name=training,
                dir=str(self._folder),
                mode=os.environ.get("WANDB_MODE", "offline"),
                reinit="create_new",
                settings=self._wandb.Settings(silent=True, console="off"),
            )
        self._runs[training].log(dict(values), step=step)

    def close(self) -> None:
        for run in self._runs.values():
            run.finish()


_KINDS = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}
_open: list[Tracker] = []


def problems(environment: Mapping[str, str] = os.environ) -> Iterator[str]:
    """A line per name that is none of a tracker, or whose package is not installed."""
    for name in _named(environment):
        if name not in _KINDS:
            yield f"{VARIABLE}: '{name}' is none of {', '.join(_KINDS)}"
        elif said := extras.missing(_KINDS[name].package):
            yield f"{VARIABLE}: '{name}' {said}"


def _named(environment: Mapping[str, str]) -> list[str]:
    return [name.strip() for name in environment.get(VARIABLE, "").split(",") if name.strip()]


@contextmanager
def followed(folder: Path, environment: Mapping[str, str] = os.environ) -> Iterator[None]:
    """Open the trackers that the environment names, for what is trained inside.

    Arguments:
        folder: for what they write.
    Raises:
        ValueError: see `problems`.
    """
    for problem in problems(environment):
        raise ValueError(problem)
    _open.extend(_KINDS[name](folder) for name in _named(environment))
    try:
        yield
    finally:
        while _open:
            _open.pop().close()


def scalars(training: str, step: int, values: Mapping[str, float]) -> None:
    """Give every open tracker a point of each curve.

    Arguments:
        training: its name; with slashes, a path below the job's folder.
        step: of the training, counted from 0.
        values: number of each curve at that step.
    """
    for tracker in _open:
        tracker.scalars(training, step, values)


def stacked(trainings: Iterable[str], step: int, columns: Sequence[str], line: Any) -> None:
    """Give every open tracker a point of each curve of trainings that run as one stack.

    Arguments:
        trainings: their names.
        step: as `scalars` takes it.
        columns: names of the curves.
        line: tensor of their values, on any device; it is fetched only if somebody watches.  Shape [columns, m].
    """
    if not _open:
        return
    for training, values in zip(trainings, line.T.tolist(), strict=True):
        scalars(training, step, dict(zip(columns, values, strict=True)))
