"""Cost of a training step of other SAE libraries, each in its own environment, against the machine's own limit.

    python benchmarks/peers.py [--peers sae-lens ...] [--shapes small ...] [--variants topk ...] [--loop]

Prints one JSON line per case; peers/protocol.py says how a step is measured and what the keys mean. Environments are
made on first use. One CPU thread, or with --device cuda a GPU.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "peers"))
from environments import NotInstallableError, create
from protocol import Shape, add_device, device, precision, use

DRIVERS = Path(__file__).parent / "peers"
PEERS = {
    "sae-lens": "drive_sae_lens.py",
    "dictionary-learning": "drive_dictionary_learning.py",
    "eai-sparsify": "drive_eai_sparsify.py",
    "overcomplete": "drive_overcomplete.py",
}
VARIANTS = ("topk", "batchtopk", "relu", "auxk")
SHAPES = {
    "small": Shape(d_in=128, d_sae=512, batch=512, k=20),
    "medium": Shape(d_in=512, d_sae=4096, batch=4096, k=32),
    "large": Shape(d_in=768, d_sae=24576, batch=2048, k=32),
}
ROUNDS = {"small": 60, "medium": 6, "large": 5}
LOOP_SHAPE, LOOP_STEPS = Shape(d_in=128, d_sae=1024, batch=1024, k=20), 60

# One thread, no network, no logger: what a step costs by itself.
QUIET = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "WANDB_MODE": "disabled",
    "HF_HUB_OFFLINE": "1",
}
CPU_ONLY = {"CUDA_VISIBLE_DEVICES": "", "SPARSIFY_DISABLE_TRITON": "1"}


def measure(
    peer: str, cases: Iterable[tuple[str, Shape, int]], loop_steps: int = 0, training: bool = False
) -> Iterator[dict]:
    """One result per (variant, shape, rounds), in order; `ratio` is None where the peer has no such variant.

    Arguments:
        loop_steps: instead of one step, the peer's own training loop over that many batches.
        training: instead of one step, a whole training of a ReLU SAE.

    Raises:
        NotInstallableError: no environment for the peer can be made here.
        RuntimeError: its driver failed; carries the end of what it wrote.
    """
    python = create(peer)
    arguments = [json.dumps([variant, *vars(shape).values(), rounds]) for variant, shape, rounds in cases]
    command = [python, DRIVERS / PEERS[peer], *arguments, "--loop", str(loop_steps)]
    command += ["--training"] if training else []
    command += ["--device", device().type, "--precision", precision()]
    environment = os.environ | QUIET | (CPU_ONLY if device().type == "cpu" else {})
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{peer}: its driver failed\n{done.stderr.strip()[-2000:]}")
    # Some peers print while they are imported.
    yield from (json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"peer"'))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument(
        "--loop", action="store_true", help="the peers' own training loops over precomputed activations"
    )
    add_device(parser)
    arguments = parser.parse_args()
    use(arguments.device, arguments.precision)
    cases = [(v, SHAPES[s], ROUNDS[s]) for s in arguments.shapes for v in arguments.variants]
    if arguments.loop:
        cases = [(variant, LOOP_SHAPE, 2) for variant in arguments.variants if variant != "auxk"]
    for peer in arguments.peers:
        try:
            for result in measure(peer, cases, LOOP_STEPS if arguments.loop else 0):
                print(json.dumps(result), flush=True)
        except (NotInstallableError, RuntimeError) as error:
            print(f"{peer}: skipped, {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
