"""Run by the interpreter that has SAEBench: its core evaluation of our SAEs on a small random model.

    python sae_bench_side.py FOLDER

FOLDER/<name>/ are SAEs in SAELens's format. Written: FOLDER/measured.json, for each its metrics by SAEBench and by us.
"""

import json
import sys
from pathlib import Path

import torch
from sae_bench.evals.core.eval_config import CoreEvalConfig
from sae_bench.evals.core.main import get_featurewise_weight_based_metrics, run_evals
from transformer_lens import HookedTransformer, HookedTransformerConfig

from saeflow.publish.saebench import BenchSAE

CONTEXT, BATCH, LAYER = 12, 8, 0


class Store:
    """The tokens of the evaluation: what the core evaluation asks of SAELens's activation store."""

    context_size, store_batch_size_prompts = CONTEXT, BATCH

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary
        self.reset_input_dataset()

    def reset_input_dataset(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def get_batch_tokens(self, n: int) -> torch.Tensor:
        return torch.randint(self.vocabulary, (n, CONTEXT), generator=self.generator)


@torch.no_grad()
def main(folder: Path) -> None:
    torch.manual_seed(0)
    sizes = {"n_layers": 2, "d_model": 16, "n_heads": 2, "d_head": 8, "d_vocab": 40, "n_ctx": CONTEXT}
    model = HookedTransformer(HookedTransformerConfig(**sizes, act_fn="gelu", seed=0)).eval()
    config = CoreEvalConfig(
        model_name="random",
        batch_size_prompts=BATCH,
        n_eval_reconstruction_batches=2,
        n_eval_sparsity_variance_batches=2,
        compute_kl=True,
        compute_ce_loss=True,
        compute_l2_norms=True,
        compute_sparsity_metrics=True,
        compute_variance_metrics=True,
        compute_featurewise_density_statistics=True,
    )
    measured = {}
    for place in sorted(path for path in folder.iterdir() if path.is_dir()):
        sae = BenchSAE.load(place, model_name="random", hook_layer=LAYER)
        metrics, _ = run_evals(sae, Store(40), model, config)
        store = Store(40)
        x = torch.cat(
            [
                model.run_with_cache(store.get_batch_tokens(BATCH), prepend_bos=False)[1][sae.cfg.hook_name]
                for _ in range(2)
            ]
        )
        weights = get_featurewise_weight_based_metrics(sae)
        measured[place.name] = {
            "theirs": {name: value for group in metrics.values() for name, value in group.items()},
            "l0": float((sae.encode(x) > 0).sum(-1).float().mean()),
            "mse": float((sae(x) - x).pow(2).mean()),
            "n_latents": len(weights["encoder_bias"]),
            "cfg": sae.cfg.to_dict(),
        }
    (folder / "measured.json").write_text(json.dumps(measured))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
