"""Time and memory of the dashboards of a wide SAE against the number of tokens.

    python benchmarks/feature_dashboards.py [--d-sae 20480] [--d-in 128] [--tokens 16384 65536]

Each number of tokens runs in a process of its own, because peak memory is a process's. Activations and weights are
random, the thresholds such that about 32 latents fire on a token. CPU time, one thread of torch.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

from saeflow.activations import ActivationStore
from saeflow.config.language import LanguageFeatures
from saeflow.datasets.inputs.texts import Texts
from saeflow.features import dashboards
from saeflow.sae.architectures import JumpReLU

CONTEXT = 128
VOCABULARY = 4096
L0 = 32


def sae(d_in: int, d_sae: int) -> JumpReLU:
    """Rows of length 1: of normal inputs a preactivation is normal, and L0 of d_sae pass the threshold."""
    generator = torch.Generator().manual_seed(0)
    W_dec = torch.nn.functional.normalize(torch.randn(d_sae, d_in, generator=generator), dim=1)
    threshold = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(1 - L0 / d_sae))
    zeros = torch.zeros(d_sae)
    return JumpReLU(W_dec.T.contiguous(), W_dec, zeros, torch.zeros(d_in), threshold.expand(d_sae).clone())


def write(folder: Path, n: int, d_in: int) -> ActivationStore:
    generator = torch.Generator().manual_seed(1)
    with ActivationStore.create(folder, d_in, "float16", source_columns=Texts.columns) as writer:
        for first in range(0, n, CONTEXT):
            token = torch.randint(VOCABULARY, (CONTEXT,), generator=generator)
            context = torch.full((CONTEXT,), first // CONTEXT)
            source = torch.stack([context, torch.arange(CONTEXT), context, token], 1)
            writer.append(torch.randn(CONTEXT, d_in, generator=generator), source)
    return ActivationStore.open(folder)


def one(n: int, d_in: int, d_sae: int) -> None:
    """Dashboards over n tokens; prints a line."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        store = write(root / "store", n, d_in)
        readout = dashboards.Readout(torch.randn(VOCABULARY, d_in), lambda ids: [f"t{i}" for i in ids])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started = time.process_time()
        numbers = dashboards.analyze(
            sae(d_in, d_sae),
            store,
            readout,
            LanguageFeatures(),
            features=root / "features.parquet",
            contexts=root / "contexts.parquet",
            scratch=root,
        )
        seconds = time.process_time() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        dense = n * d_sae * 4 / 2**20
        print(
            f"{n:9} tokens, L0 {numbers['l0']:.1f}: {seconds:7.1f} s CPU, {1e6 * seconds / n:7.0f} us/token, peak "
            f"{peak / 1024:6.0f} MiB ({before / 1024:.0f} before); dense activations would take {dense:.0f} MiB",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d-sae", type=int, default=20_480)
    parser.add_argument("--d-in", type=int, default=128)
    parser.add_argument("--tokens", type=int, nargs="+", default=[16_384, 65_536])
    parser.add_argument("--here", action="store_true", help="in this process: what the benchmark starts")
    options = parser.parse_args()
    for n in options.tokens:
        if options.here:
            one(n, options.d_in, options.d_sae)
        else:
            sizes = ["--tokens", str(n), "--d-in", str(options.d_in), "--d-sae", str(options.d_sae)]
            subprocess.run([sys.executable, __file__, "--here", *sizes], check=True)


if __name__ == "__main__":
    main()
