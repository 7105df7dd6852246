"""Evaluations per second of the greedy search for text over those of the bare forward pass of the same shape.

    python benchmarks/inversion_search.py MODEL [--hook model.layers.3] [--features 20] [--evaluations 2000]

Features are random directions at the hook point. The bare pass takes as many prompts of as many tokens in batches of
the same size, stops at the hook point as well, and does nothing with what it gets. Rounds alternate; CPU time is not
told apart from waiting, so the machine should be quiet.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

from saeflow.config.language import Hook
from saeflow.inversion.optimization import baselines, gcg
from saeflow.inversion.optimization.objective import Objective, Readout
from saeflow.inversion.optimization.vocabulary import Vocabulary
from saeflow.models import language
from saeflow.models.hook_points import activations_at

SETTINGS = {"dtype": "float32", "attention": "eager", "device_map": None, "trust_remote_code": False}


def bare(objective: Objective, vocabulary: Vocabulary, n: int, length: int) -> float:
    """Seconds of as many prompts."""
    ids = vocabulary.random(objective.batch_size, length, torch.Generator().manual_seed(1))
    if objective.start is not None:
        ids = torch.cat([torch.full((len(ids), 1), objective.start), ids], 1)
    began = time.perf_counter()
    with torch.no_grad():
        for first in range(0, n, objective.batch_size):
            activations_at(objective.model, objective.name, objective.hook, input_ids=ids[: n - first])
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--hook", default="model.layers.3")
    parser.add_argument("--features", type=int, default=20)
    parser.add_argument("--evaluations", type=int, default=2000)
    parser.add_argument("--length", type=int, default=16)
    parser.add_argument("--restarts", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    model, tokens = language.load(options.model, SETTINGS, "cpu"), language.load_tokenizer(options.model, SETTINGS)
    hook, n = Hook(module=options.hook), options.features
    width = activations_at(model, hook.name, hook, input_ids=torch.tensor([[0, 0]]))[0].shape[-1]
    readout = Readout(torch.randn(n, width, generator=torch.Generator().manual_seed(0)), torch.zeros(n))
    objective = Objective(model, hook.name, hook, readout, tokens.start)
    vocabulary = Vocabulary(tokens, len(objective.embeddings))
    starts = baselines.dataset_starts([[]] * n, vocabulary, options.restarts, options.length, seed=0)
    windows = [baselines.aligned([], options.length)] * n
    spec, rates = gcg.GCGSettings(options.evaluations), []
    for i in range(options.rounds):
        began = time.perf_counter()
        found = gcg.search(objective, vocabulary, starts, windows, spec, seed=i)
        searched, spent = time.perf_counter() - began, int(found.spent.sum())
        alone = bare(objective, vocabulary, spent, options.length)
        rates.append(alone / searched)
        print(
            f"round {i + 1}: search {spent / searched:6.0f} evaluations/s, bare forward {spent / alone:6.0f}/s, "
            f"ratio {rates[-1]:.2f}",
            flush=True,
        )
    print(f"median ratio {statistics.median(rates):.2f}")


if __name__ == "__main__":
    main()
