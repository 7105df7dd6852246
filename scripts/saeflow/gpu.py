"""The GPU of a job: its environment, and which card it takes."""

import fcntl
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from saeflow.reproduce import ENVIRONMENT

_held: list[IO[str]] = []


def prepare() -> str:
    """Make a card the one that "cuda" means in this process; before its first use.

    Returns:
        number and name of the card, for the log.
    Raises:
        RuntimeError: no GPU, or the process was started without what its libraries read at their start.
    """
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError("compute.device: 'cuda', but torch finds no CUDA device here; use 'cpu' or a GPU node")
    check_environment(os.environ)
    n = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(n)))
    card = claim(visible.split(",")[:n])
    torch.cuda.set_device(card)
    return f"card {card}: {torch.cuda.get_device_name(card)}"


def check_environment(environment: Mapping[str, str]) -> None:
    """Refuse a process that was started without `reproduce.ENVIRONMENT`.

    Raises:
        RuntimeError: a variable is missing or has another value; names it.
    """
    for name, value in ENVIRONMENT.items():
        if environment.get(name) != value:
            raise RuntimeError(
                f"{name}: {environment.get(name)!r} must be {value!r} when a job on a GPU starts; the Snakefile sets "
                "it, so something between Snakemake and the job (a container's --cleanenv, say) took it away"
            )


def claim(cards: Sequence[str], folder: Path | None = None) -> int:
    """Position of a card that no other job of this user on this machine has; held until the process ends.

    Snakemake counts the GPUs of a machine but gives none to a job by name. Where a scheduler does, one card is all that
    the job sees. If every card is taken, jobs share them.

    Arguments:
        cards: names of the cards.
        folder: for the locks; the system's folder for temporary files if not given.
    """
    for i, card in enumerate(cards):
        name = f"saeflow-{os.getuid()}-gpu-{card}.lock"
        lock = open((folder or Path(tempfile.gettempdir())) / name, "w", encoding="utf-8")  # noqa: SIM115
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            continue
        _held.append(lock)
        return i
    return os.getpid() % len(cards)
