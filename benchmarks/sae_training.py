"""Cost of a whole training of a ReLU SAE, from dense codes to sparse ones, against other libraries' own trainers.

    python benchmarks/sae_training.py [--rounds 5] [--peers overcomplete sae-lens ...]

All train 128 -> 512 on the same batches for the same steps, with the same loss, penalty, warm-up and step size
(`protocol.Training`), each by its own loop. A cost is process CPU time on one thread per step, over that of the five
dense matrix products, timed in turn (`protocol.measure_training`). Libraries take turns, round by round, and the least
round of each counts. L0 is that of the last round.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "benchmarks")]

from environments import NotInstallableError  # noqa: E402
from peers import PEERS, SHAPES  # noqa: E402
from peers import measure as measure_peer  # noqa: E402
from protocol import Shape, Training, measure_training  # noqa: E402

from saeflow.activations import ActivationStore  # noqa: E402
from saeflow.config import saes  # noqa: E402
from saeflow.config.saes import ReLU  # noqa: E402
from saeflow.sae.initialization import Normalization  # noqa: E402
from saeflow.sae.stack import Member  # noqa: E402
from saeflow.sae.trainer import train  # noqa: E402

SHAPE = SHAPES["small"]
TRAINERS = ("overcomplete", "dictionary-learning", "sae-lens")


def fit(shape: Shape, training: Training, batches: list[torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Our training, from a store with the same rows, which it shuffles itself."""
    store = ActivationStore.from_array(torch.cat(batches[: training.distinct_batches]))
    # Our penalty weighs against activations of mean squared norm d_in.
    scale = Normalization.of(store.batches(shape.batch, 0, epochs=1, shuffle=None), normalize=True).scale
    spec = ReLU(architecture="relu", d_sae=shape.d_sae, penalty=training.penalty * scale)
    settings = saes.Training(
        steps=training.steps,
        batch_size=shape.batch,
        learning_rate=training.learning_rate,
        warmup_steps=0,
        decay_share=0,
        sparsity_warmup_steps=training.penalty_warmup,
    )
    (result,) = train(store, [Member("relu", spec, 0)], settings)
    return result.sae.encode


def peer_training(peer: str) -> dict[str, float]:
    (result,) = measure_peer(peer, [("relu", SHAPE, 1)], training=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=TRAINERS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    trainings = {"saeflow": partial(measure_training, fit, SHAPE, 1)}
    trainings |= {peer: partial(peer_training, peer) for peer in arguments.peers}
    results: dict[str, list[dict[str, float]]] = {}
    for _ in range(arguments.rounds):
        for who, measured in list(trainings.items()):
            try:
                results.setdefault(who, []).append(measured())
            except (NotInstallableError, RuntimeError) as error:
                print(f"{who}: skipped, {error}", file=sys.stderr)
                del trainings[who], results[who]
    floor = min(result["floor_s"] for rounds in results.values() for result in rounds)
    least = {who: min(result["step_s"] for result in rounds) for who, rounds in results.items()}
    print(f"{SHAPE}, {Training()}: {arguments.rounds} rounds")
    for who, step_s in least.items():
        l0, times = results[who][-1]["l0"], step_s / least["saeflow"]
        print(f"{who:20} {step_s / floor:6.2f} x floor   {times:5.2f} x saeflow   L0 {l0:5.1f}", flush=True)


if __name__ == "__main__":
    main()
