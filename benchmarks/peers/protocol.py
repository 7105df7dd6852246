"""How the cost of one training step is measured, the same for every peer and for saeflow.

A step is timed in turn with its floor, the five dense matrix products without which a dense SAE step cannot do (encode,
decode, gradient of the codes, of W_dec and of W_enc), in process CPU time on one thread; the least of several rounds
counts. So other work on the machine weighs on both alike, and their ratio can be compared between processes. On a GPU
it is wall time, from and to an idle card.

Needs nothing but torch: it is imported in every peer's own environment.
"""

import argparse
import ctypes
import gc
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from itertools import cycle, islice
from pathlib import Path

import torch
from torch import Tensor

Step = Callable[[Tensor], object]

# Steps are numbered as in the middle of a training run, where warm-ups are over and thresholds are tracked.
FIRST_STEP, LAST_STEP = 5_000, 100_000
DEAD_SHARE = 0.25
# Encoder bias of a latent that shall be dead: preactivations of the data below are a tenth of it at most.
DEAD_BIAS = -100.0

_device = torch.device("cpu")


def device() -> torch.device:
    """Where steps are measured."""
    return _device


def use(device: str, precision: str) -> None:
    """Measure on "cpu", one thread, or "cuda"; in "float32" or "tf32"."""
    global _device
    _device = torch.device(device)
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")


def precision() -> str:
    """Of matrix products."""
    return "tf32" if torch.get_float32_matmul_precision() == "high" else "float32"


def add_device(parser: argparse.ArgumentParser) -> None:
    """Arguments for `use`."""
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("float32", "tf32"), default="float32", help="of matrix products")


@dataclass(frozen=True)
class Shape:
    """Sizes of one training step."""

    d_in: int
    d_sae: int
    batch: int
    k: int


@dataclass(frozen=True)
class Training:
    """A whole training of a ReLU SAE, whose codes are dense at the start and sparse at the end.

    L = mean |x - x_hat|^2 + penalty * sum_f z_f |W_dec,f|, by Adam with a constant step size; the penalty rises
    linearly from 0 over the first steps. With the one below, L0 of `activations` ends at about 20 of 512.
    """

    steps: int = 1500
    penalty: float = 1.2
    penalty_warmup: int = 500
    learning_rate: float = 1e-3
    distinct_batches: int = 200

    def batches(self, shape: Shape) -> list[Tensor]:
        """One [batch, d_in] for each step, the distinct ones in turn."""
        distinct = list(activations(shape, self.distinct_batches))
        return list(islice(cycle(distinct), self.steps))


@dataclass
class Subject:
    """What is measured."""

    step: Step
    """Takes a batch [batch, d_in] and trains on it: forward, losses, gradients, optimizer, norms."""
    before: Callable[[], object] = lambda: None
    """Run before every step, and not timed."""


Maker = Callable[[str, Shape], Subject | None]
Fit = Callable[[Shape, Training, list[Tensor]], Step]
"""Trains an SAE on the batches and returns its encoder."""


def activations(shape: Shape, n_batches: int, seed: int = 0) -> Iterator[Tensor]:
    """Batches [batch, d_in]: k of 2 d_in random directions a row, exponentially weighted, plus noise of std 0.1."""
    generator = torch.Generator().manual_seed(seed)
    n_directions = 2 * shape.d_in
    directions = torch.nn.functional.normalize(torch.randn(n_directions, shape.d_in, generator=generator), dim=1)
    for _ in range(n_batches):
        chosen = torch.randint(n_directions, (shape.batch, shape.k), generator=generator)
        weights = torch.empty(shape.batch, shape.k).exponential_(generator=generator)
        rows = torch.nn.functional.embedding_bag(chosen, directions, per_sample_weights=weights, mode="sum")
        yield rows + 0.1 * torch.randn(shape.batch, shape.d_in, generator=generator)


def dead_latents(shape: Shape, seed: int = 1) -> Tensor:
    """Mask [d_sae] of the latents that are dead in the AuxK measurement."""
    mask = torch.zeros(shape.d_sae, dtype=torch.bool)
    mask[
        torch.randperm(shape.d_sae, generator=torch.Generator().manual_seed(seed))[: int(DEAD_SHARE * shape.d_sae)]
    ] = True
    return mask


class Floor:
    """Five dense products of a shape, into buffers that are already there."""

    def __init__(self, shape: Shape) -> None:
        generator = torch.Generator().manual_seed(2)
        b, d, f = shape.batch, shape.d_in, shape.d_sae
        sizes = ((b, d), (d, f), (b, f))
        self.x, self.w, self.z = (torch.randn(size, generator=generator).to(device()) for size in sizes)
        self.out = {size: torch.empty(size, device=device()) for size in ((b, f), (b, d), (d, f))}

    def __call__(self) -> None:
        x, w, z = self.x, self.w, self.z
        for left, right in ((x, w), (z, w.T), (x, w), (x.T, z), (x.T, z)):
            torch.mm(left, right, out=self.out[left.shape[0], right.shape[1]])


def seconds(work: Callable[[], object]) -> float:
    """Process CPU time of one call; on a GPU wall time."""
    if device().type == "cpu":
        start = time.process_time()
        work()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(subject: Subject, shape: Shape, rounds: int) -> dict[str, float]:
    """Seconds of a step and of its floor, their ratio, and the memory of a step above that of what was there before."""
    batches = [x.to(device()) for x in activations(shape, 2)]
    subject.before()
    with PeakMemory() as peak:
        subject.step(batches[0])
    floor = Floor(shape)
    floor()
    step_s = floor_s = float("inf")
    for i in range(rounds):
        subject.before()
        floor_s = min(floor_s, seconds(floor))
        step_s = min(step_s, seconds(lambda: subject.step(batches[i % 2])))  # noqa: B023
    return {"step_s": step_s, "floor_s": floor_s, "ratio": step_s / floor_s, "rss_over_init_mb": peak.megabytes}


class PeakMemory:
    """Most memory inside a `with` block, above that at its start, in 1e6 bytes: of the GPU, or resident (Linux)."""

    megabytes = float("nan")

    def __enter__(self) -> "PeakMemory":
        if device().type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.start = self._peak()
        elif os.path.exists("/proc/self/clear_refs"):
            gc.collect()
            # What an earlier case freed would otherwise be taken again without being seen.
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
            self.start = self._peak()
        return self

    def __exit__(self, *_: object) -> None:
        if hasattr(self, "start"):
            self.megabytes = self._peak() - self.start

    @staticmethod
    def _peak() -> float:
        if device().type == "cuda":
            return torch.cuda.max_memory_allocated() / 1e6
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1.024e-3


def measure_training(fit: Fit, shape: Shape, rounds: int) -> dict[str, float]:
    """Seconds per step of a whole training, its ratio to the floor, and L0 at its end."""
    training = Training()
    batches, floor = training.batches(shape), Floor(shape)
    train_s = floor_s = float("inf")
    for _ in range(rounds):
        floor_s = min(floor_s, *(seconds(floor) for _ in range(20)))
        start = time.process_time()
        encode = fit(shape, training, batches)
        train_s = min(train_s, (time.process_time() - start) / training.steps)
        floor_s = min(floor_s, *(seconds(floor) for _ in range(20)))
    with torch.no_grad():
        l0 = float((encode(batches[0]) > 0).sum(1).float().mean())
    return {"step_s": train_s, "floor_s": floor_s, "ratio": train_s / floor_s, "l0": l0}


def main(peer: str, make: Maker, make_loop: Maker | None = None, fit: Fit | None = None) -> None:
    """Command line of a driver: take cases in JSON, `[variant, d_in, d_sae, batch, k, rounds]`, print a line for each.

    Arguments:
        make: subject for a variant (`topk`, `batchtopk`, `relu`, `auxk`) and a shape, or None where the peer has none.
        make_loop: the same for the peer's own training loop: its step takes many batches, [n, batch, d_in].
        fit: a whole training of a ReLU SAE by that loop.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="+", type=json.loads)
    parser.add_argument(
        "--loop", type=int, default=0, help="steps of the peer's own training loop, instead of one step"
    )
    parser.add_argument("--training", action="store_true", help="whole trainings of ReLU SAEs, instead of one step")
    add_device(parser)
    arguments = parser.parse_args()
    use(arguments.device, arguments.precision)
    for variant, d_in, d_sae, batch, k, rounds in arguments.cases:
        torch.manual_seed(0)
        shape = Shape(d_in, d_sae, batch, k)
        result = {"peer": peer, "version": version(peer), "variant": variant, **vars(shape)}
        if arguments.training:
            print(json.dumps(result | measure_training(fit, shape, rounds)), flush=True)
            continue
        maker = make_loop if arguments.loop else make
        subject = maker(variant, shape) if maker else None
        if subject is None:
            print(json.dumps(result | {"ratio": None}), flush=True)
        elif arguments.loop:
            print(json.dumps(result | measure_loop(subject, shape, arguments.loop, rounds)), flush=True)
        else:
            print(json.dumps(result | measure(subject, shape, rounds)), flush=True)


def measure_loop(subject: Subject, shape: Shape, steps: int, rounds: int) -> dict[str, float]:
    """Seconds per step of a whole training loop on precomputed activations, and its ratio to the floor."""
    batches = torch.stack(list(activations(shape, steps)))
    floor = Floor(shape)
    floor()
    loop_s = floor_s = float("inf")
    for _ in range(rounds):
        floor_s = min(floor_s, *(seconds(floor) for _ in range(5)))
        loop_s = min(loop_s, seconds(lambda: subject.step(batches)) / steps)
    return {"steps": steps, "step_s": loop_s, "floor_s": floor_s, "ratio": loop_s / floor_s}
