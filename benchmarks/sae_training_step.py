"""Cost of one SAE training step against the machine's own limit, a plain autograd trainer, and other libraries.

    python benchmarks/sae_training_step.py [--shapes small ...] [--peers] [--stacking] [--memory]

Every number is process CPU time on one thread, the least of several rounds, divided by that of the five dense matrix
products of the same shape, timed in turn (peers/protocol.py). With --peers, other libraries are measured the same way,
each in its own environment (peers.py). --stacking compares many small SAEs stacked with one after another; --memory
gives the peak of resident memory above the weights alone, in a process of its own, for both of Adam's second moments.
With --device cuda every number is wall time from and to an idle card, and memory the card's; saeflow then computes with
deterministic algorithms, as its jobs do.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "benchmarks")]

from environments import NotInstallableError  # noqa: E402
from peers import PEERS, ROUNDS, SHAPES  # noqa: E402
from peers import measure as measure_peer  # noqa: E402
from protocol import (  # noqa: E402
    DEAD_BIAS,
    PeakMemory,
    Shape,
    Subject,
    activations,
    add_device,
    dead_latents,
    device,
    measure,
    seconds,
    use,
)

from saeflow.activations import ActivationStore  # noqa: E402
from saeflow.config.saes import BatchTopK, Gated, JumpReLU, MatryoshkaBatchTopK, ReLU, SparseAutoencoder, TopK, Training  # noqa: E402
from saeflow.reproduce import ENVIRONMENT  # noqa: E402
from saeflow.rule import make_deterministic  # noqa: E402
from saeflow.sae.initialization import Normalization  # noqa: E402
from saeflow.sae.stack import Member, Stack  # noqa: E402
from saeflow.sae.trainer import plan  # noqa: E402

# Small enough that what is measured stays as it is: dense or sparse, dead or alive.
LEARNING_RATE = 1e-9
SPARSE_SHARE = 0.01
STACKED = {
    "64 -> 64, batch 128": Shape(64, 64, 128, 8),
    "64 -> 128, batch 256": Shape(64, 128, 256, 8),
    "128 -> 512, batch 512": Shape(128, 512, 512, 20),
    "32 -> 512, batch 512": Shape(32, 512, 512, 16),
}
N_STACKED = 24


def spec_of(variant: str, shape: Shape) -> SparseAutoencoder:
    """Settings of a variant; `relu` and `relu 1 %` differ by their biases only."""
    n, k = shape.d_sae, shape.k
    match variant:
        case "topk" | "auxk":
            return TopK(architecture="topk", d_sae=n, k=k)
        case "batchtopk":
            return BatchTopK(architecture="batchtopk", d_sae=n, k=k)
        case "matryoshka":
            prefixes = (n // 16, n // 4, n)
            return MatryoshkaBatchTopK(architecture="matryoshka", d_sae=n, k=k, prefixes=prefixes)
        case "jumprelu 1 %":
            return JumpReLU(architecture="jumprelu", d_sae=n, penalty=1e-3)
        case "gated 1 %":
            return Gated(architecture="gated", d_sae=n, penalty=1e-3)
    return ReLU(architecture="relu", d_sae=n, penalty=1e-3)


VARIANTS = ("topk", "batchtopk", "matryoshka", "relu", "relu 1 %", "jumprelu 1 %", "gated 1 %", "auxk")


def stack_of(variant: str, shape: Shape, x: torch.Tensor, n_members: int = 1, second_moment: str = "element") -> Stack:
    """Members as the trainer makes them, on activations that are taken as they are."""
    training = Training(
        steps=10**6,
        batch_size=shape.batch,
        learning_rate=LEARNING_RATE,
        dead_after=10**9,
        second_moment=second_moment,
    )
    unit = Normalization(torch.zeros(shape.d_in), 1.0, torch.zeros(shape.d_in))
    members = [Member(str(seed), spec_of(variant, shape), seed) for seed in range(n_members)]
    stack = Stack(members, [ActivationStore.from_array(x)], {0: unit}, training, device=device())
    parameters = stack.objective.parameters
    if variant.endswith("1 %"):
        few = x[:256].to(device()) @ parameters["W_enc_T"][0].T
        bound = few.flatten().sort().values[int((1 - SPARSE_SHARE) * few.numel()) - 1]
        parameters[stack.objective.bias].fill_(-float(bound))
    if variant == "auxk":
        dead = dead_latents(shape)
        parameters["b_enc"][:, dead] = DEAD_BIAS
        stack.counter.since[:, dead] = 10**9
    return stack


def ours(variant: str, shape: Shape, n_members: int = 1, second_moment: str = "element") -> Subject:
    stack = stack_of(variant, shape, next(activations(shape, 1)), n_members, second_moment)
    steps = iter(range(10**6))

    def step(x: torch.Tensor) -> None:
        with torch.no_grad():
            stack.step(x.expand(n_members, -1, -1), next(steps))

    # The first steps find out what is dead and whether the dense route pays.
    for x in activations(shape, 2):
        step(x.to(device()))
    return Subject(step)


def per_latent(variant: str, shape: Shape) -> Subject | None:
    """Ours with one second moment per latent, which changes the optimizer alone: where it weighs least and most."""
    return ours(variant, shape, second_moment="latent") if variant in ("topk", "relu") else None


def plain(variant: str, shape: Shape) -> Subject | None:
    """What one writes first: autograd through dense tensors, torch.optim.Adam, unit-norm decoder."""
    if variant not in ("topk", "batchtopk", "relu", "relu 1 %"):
        return None
    generator = torch.Generator().manual_seed(0)
    W = torch.nn.functional.normalize(torch.randn(shape.d_sae, shape.d_in, generator=generator).to(device()), dim=1)
    W_dec = torch.nn.Parameter(W)
    W_enc, b_enc = torch.nn.Parameter(W.T.clone()), torch.nn.Parameter(torch.zeros(shape.d_sae, device=device()))
    b_dec = torch.nn.Parameter(torch.zeros(shape.d_in, device=device()))
    optimizer = torch.optim.Adam([W_enc, W_dec, b_enc, b_dec], lr=LEARNING_RATE, fused=device().type == "cuda")

    def step(x: torch.Tensor) -> None:
        z = ((x - b_dec) @ W_enc + b_enc).relu()
        loss = 0.0
        if variant == "topk":
            values, where = z.topk(shape.k, dim=1, sorted=False)
            z = torch.zeros_like(z).scatter(1, where, values)
        elif variant == "batchtopk":
            values, where = z.flatten().topk(shape.k * len(x), sorted=False)
            z = torch.zeros_like(z).flatten().scatter(0, where, values).view_as(z)
        else:
            loss = 1e-3 * z.sum(1).mean()
        loss = loss + (z @ W_dec + b_dec - x).square().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        with torch.no_grad():
            W_dec.grad.sub_((W_dec.grad * W_dec).sum(1, keepdim=True) * W_dec)
            optimizer.step()
            W_dec.div_(W_dec.norm(dim=1, keepdim=True))

    return Subject(step)


def weight_bytes(shape: Shape) -> int:
    return 4 * (2 * shape.d_sae * shape.d_in + shape.d_sae + shape.d_in)


def peak_over_weights(variant: str, shape: Shape, second_moment: str) -> float:
    """Most resident memory, in 1e6 bytes, from before an SAE is made to after three steps, without its weights."""
    batches = [x.to(device()) for x in activations(shape, 3)]
    with PeakMemory() as peak:
        stack = stack_of(variant, shape, batches[0].cpu(), second_moment=second_moment)
        with torch.no_grad():
            for step, x in enumerate(batches):
                stack.step(x[None], step)
    return peak.megabytes - weight_bytes(shape) / 1e6


def step_rows(shapes: list[str], rounds: int | None) -> Iterator[tuple[str, str, str, float, float]]:
    """Shape, variant, who, milliseconds and ratio to the floor."""
    for name in shapes:
        shape = SHAPES[name]
        for variant in VARIANTS:
            for who, make in (("saeflow", ours), ("one moment a latent", per_latent), ("plain autograd", plain)):
                subject = make(variant, shape)
                if subject is not None:
                    result = measure(subject, shape, rounds or ROUNDS[name])
                    yield name, variant, who, 1e3 * result["step_s"], result["ratio"]


def peer_rows(shapes: list[str], rounds: int | None) -> Iterator[tuple[str, str, str, float, float]]:
    for peer in PEERS:
        cases = [(v, SHAPES[s], rounds or ROUNDS[s]) for s in shapes for v in ("topk", "batchtopk", "relu", "auxk")]
        named = [(s, v) for s in shapes for v in ("topk", "batchtopk", "relu", "auxk")]
        try:
            for (name, variant), result in zip(named, measure_peer(peer, cases), strict=True):
                if result["ratio"] is not None:
                    yield name, variant, peer, 1e3 * result["step_s"], result["ratio"]
        except (NotInstallableError, RuntimeError) as error:
            print(f"{peer}: skipped, {error}", file=sys.stderr)


def memory_rows(name: str, peers: bool) -> Iterator[tuple[str, str, float]]:
    """Variant, who, and peak of resident memory above the weights in 1e6 bytes."""
    for variant, second_moment in product(VARIANTS, ("element", "latent")):
        command = [sys.executable, __file__, "--memory-of", variant, second_moment, "--shapes", name]
        command += ["--device", device().type]
        peak = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        yield variant, f"saeflow, {second_moment}", float(peak)
    for peer in PEERS if peers else ():
        try:
            (result,) = measure_peer(peer, [("topk", SHAPES[name], 1)])
            yield "topk", peer, result["rss_over_init_mb"]
        except (NotInstallableError, RuntimeError) as error:
            print(f"{peer}: skipped, {error}", file=sys.stderr)


def stacking_rows(rounds: int) -> Iterator[tuple[str, str, float, float]]:
    """Shape, variant, milliseconds of 24 SAEs one after another, and how many times faster they are as planned."""
    for name, shape in STACKED.items():
        for variant in ("topk", "batchtopk", "relu"):
            x = next(activations(shape, 1)).to(device())
            members = [Member(str(seed), spec_of(variant, shape), seed) for seed in range(N_STACKED)]
            training = Training(batch_size=shape.batch)
            groups = plan(members, [ActivationStore.from_array(x.cpu())], training, device())
            alone = [ours(variant, shape) for _ in members]
            stacked = [ours(variant, shape, len(group)) for group in groups]

            def one_after_another(alone: list[Subject] = alone, x: torch.Tensor = x) -> None:
                for subject in alone:
                    subject.step(x)

            def together(stacked: list[Subject] = stacked, x: torch.Tensor = x) -> None:
                for subject in stacked:
                    subject.step(x)

            times = least({"alone": one_after_another, "together": together}, rounds)
            yield name, variant, 1e3 * times["alone"], times["alone"] / times["together"]


def least(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Least seconds of each, taken in turn."""
    times = {name: float("inf") for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            times[name] = min(times[name], seconds(work))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--rounds", type=int, help="rounds per case; default by shape, at least 5")
    parser.add_argument("--peers", action="store_true", help="measure other libraries as well")
    parser.add_argument("--stacking", action="store_true", help="only: many small SAEs stacked or one after another")
    parser.add_argument("--memory", action="store_true", help="only: peak memory at the largest of the shapes")
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    add_device(parser)
    arguments = parser.parse_args()
    use(arguments.device, arguments.precision)
    if arguments.device == "cuda":
        os.environ.update(ENVIRONMENT)
        make_deterministic(1, {"device": arguments.device, "matmul_precision": arguments.precision})
    largest = SHAPES[arguments.shapes[-1]]
    if arguments.memory_of:
        variant, second_moment = arguments.memory_of
        print(peak_over_weights(variant, largest, second_moment))
    elif arguments.memory:
        weights = weight_bytes(largest) / 1e6
        print(f"{largest}: peak above the {weights:.0f} MB of weights; each of Adam's moments is as large", flush=True)
        for variant, who, megabytes in memory_rows(arguments.shapes[-1], arguments.peers):
            print(f"{variant:14} {who:20} {megabytes:8.0f} MB", flush=True)
    elif arguments.stacking:
        for name, variant, milliseconds, faster in stacking_rows(arguments.rounds or 7):
            print(
                f"{name:22} {variant:10} {milliseconds:8.1f} ms one after another, stacked x {faster:.2f}", flush=True
            )
    else:
        print(f"{'shape':8} {'variant':14} {'':20} {'ms':>9} {'/ floor':>8}")
        rows = step_rows(arguments.shapes, arguments.rounds)
        for group in (rows, peer_rows(arguments.shapes, arguments.rounds)) if arguments.peers else (rows,):
            for name, variant, who, milliseconds, ratio in group:
                print(f"{name:8} {variant:14} {who:20} {milliseconds:9.2f} {ratio:8.3f}", flush=True)


if __name__ == "__main__":
    main()
