"""Members of one architecture trained stacked against one after another: CPU time of one thread, ratios of one run.

    python benchmarks/stacked_classifiers.py

Both orders take turns, the shorter of `REPEATS` times counts. `saeflow.models.classifier_training.STACK_BELOW` is set
from this table. The last column tells whether both give the same weights to the bit.
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
from saeflow.config.images import ARCHITECTURES, Classifiers
from saeflow.datasets.images import ImageDataset, ImageSplit
from saeflow.models.classifier_training import Member, train

N_IMAGES = 1280
N_CLASSES = 10
REPEATS = 3
STEPS = 60


def noise(side: int) -> ImageDataset:
    """Images of noise: the time of a step does not depend on what they show."""
    rng = np.random.default_rng(0)
    split = ImageSplit(
        rng.random((N_IMAGES, 1, side, side), dtype=np.float32), rng.integers(0, N_CLASSES, N_IMAGES, dtype=np.int64)
    )
    return ImageDataset("noise", N_CLASSES, split, split[:0], split[:100])


def main() -> None:
    torch.set_num_threads(1)
    batch_size = Classifiers().batch_size
    settings = Classifiers(epochs=max(1, STEPS * batch_size // N_IMAGES))
    n_steps = settings.epochs * N_IMAGES // batch_size
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, batch {batch_size}")
    print("architecture  image  parameters  members  ms a step: in turn  stacked  ratio  equal")
    for side in (8, 28):
        data = noise(side)
        for architecture in ARCHITECTURES:
            for n_members in (3, 12):
                members = [Member("full", tuple(range(N_CLASSES)), seed) for seed in range(n_members)]
                times, weights = {False: [], True: []}, {}
                for _ in range(REPEATS):
                    for stacked in times:
                        started = time.process_time()
                        trained = train(architecture, data, members, settings, stacked=stacked)
                        times[stacked].append(time.process_time() - started)
                        weights[stacked] = list(trained.classifier.parameters())
                in_turn, stacked = (1e3 * min(times[how]) / n_steps for how in (False, True))
                equal = all(map(torch.equal, weights[False], weights[True]))
                size = sum(parameter[0].numel() for parameter in weights[True])
                what = f"{architecture:12}  {side:2} x {side:<2} {size:9,}  {n_members:7}"
                ratio = f"{in_turn / stacked:5.2f}  {'yes' if equal else 'NO'}"
                print(f"{what}  {in_turn:18.2f}  {stacked:7.2f}  {ratio}", flush=True)


if __name__ == "__main__":
    main()
