"""SAE training on a GPU against the card's own matrix products, and whether two trainings have the same bytes.

    python benchmarks/gpu.py [--device cuda] [--shape large] [--steps 200]

For float32 and tf32: the rate of one large matrix product; wall time per step of a whole training of each SAE variant,
reading included, over that of the five dense products of its shape; rows per second; what a training takes before its
first step and after its last; and digests of two trainings, each in a process of its own. `--device cpu` runs it where
there is no card. `sae_training_step.py --device cuda` compares single steps with those of other libraries.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "benchmarks")]

from peers import SHAPES  # noqa: E402
from protocol import Floor, Shape, activations, seconds, use  # noqa: E402
from sae_training_step import spec_of  # noqa: E402

from saeflow.activations import ActivationStore  # noqa: E402
from saeflow.config.saes import Training  # noqa: E402
from saeflow.reproduce import ENVIRONMENT  # noqa: E402
from saeflow.rule import make_deterministic  # noqa: E402
from saeflow.sae.stack import Member  # noqa: E402
from saeflow.sae.trainer import train  # noqa: E402

VARIANTS = ("topk", "batchtopk", "matryoshka", "relu", "jumprelu 1 %", "gated 1 %")
PRODUCT = {"cpu": 1024, "cuda": 8192}
STORE_BATCHES = 16


def measure(shape: Shape, device: str, precision: str, steps: int) -> dict:
    """All numbers of one precision, of this process."""
    make_deterministic(1, {"device": device, "matmul_precision": precision})
    use(device, precision)
    n = PRODUCT[device]
    a = torch.randn(n, n, generator=torch.Generator().manual_seed(0)).to(device)
    result = {"product_tflops": 2e-12 * n**3 / least(lambda: a @ a)}
    floor_s = least(Floor(shape))
    result["name"] = torch.cuda.get_device_name() if device == "cuda" else torch.backends.cpu.get_cpu_capability()
    store = ActivationStore.from_array(torch.cat(list(activations(shape, STORE_BATCHES))))
    for variant in VARIANTS:
        short, (trained, long) = (fitted(store, variant, shape, n, device) for n in (steps // 4, steps))
        step_s = (long - short[1]) / (steps - steps // 4)
        digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in trained.parameters()))
        result[variant] = {
            "start_s": long - steps * step_s,
            "ms": 1e3 * step_s,
            "over_products": step_s / floor_s,
            "rows_per_s": shape.batch / step_s,
            "sha256": digest.hexdigest(),
        }
    return result


def least(work: Callable[[], object], rounds: int = 5) -> float:
    """Least seconds of one call, after a first one."""
    work()
    return min(seconds(work) for _ in range(rounds))


def fitted(store: ActivationStore, variant: str, shape: Shape, steps: int, device: str) -> tuple[Any, float]:
    """A trained SAE, and how many seconds of wall time it took."""
    training = Training(steps=steps, batch_size=shape.batch, warmup_steps=0, sparsity_warmup_steps=0)
    started = time.perf_counter()
    (result,) = train(store, [Member(variant, spec_of(variant, shape), 0)], training, device=device)
    return result.sae, time.perf_counter() - started


def in_a_process(arguments: argparse.Namespace, precision: str) -> dict:
    """`measure` in a process of its own, started with what a job would find."""
    command = [sys.executable, __file__, "--precision", precision]
    command += ["--device", arguments.device, "--shape", arguments.shape, "--steps", str(arguments.steps)]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | ENVIRONMENT)
    return json.loads(run.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=PRODUCT, default="cuda")
    parser.add_argument("--shape", choices=SHAPES, default="large")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--precision", choices=("float32", "tf32"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    shape = SHAPES[arguments.shape]
    if arguments.precision:
        print(json.dumps(measure(shape, arguments.device, arguments.precision, arguments.steps)))
        return
    for precision in ("float32", "tf32") if arguments.device == "cuda" else ("float32",):
        first, second = (in_a_process(arguments, precision) for _ in range(2))
        print(
            f"{first['name']}, {precision}: matrix product {first['product_tflops']:.3g} TFLOP/s; {shape}", flush=True
        )
        for variant in VARIANTS:
            one, other = first[variant], second[variant]
            print(
                f"{variant:14} {one['ms']:9.2f} ms a step, {one['over_products']:6.2f} x five products, "
                f"{one['rows_per_s']:10.0f} rows a second, {one['start_s']:4.1f} s beside, {one['sha256'][:12]}, "
                f"{'the same again' if one['sha256'] == other['sha256'] else 'NOT the same again'}",
                flush=True,
            )


if __name__ == "__main__":
    main()
