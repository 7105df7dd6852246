"""Measure every SAE of one hook point on text held out: alone, and spliced into its language model."""

from itertools import product
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from saeflow.activations import ActivationStore
from saeflow.config.language import LanguageActivations, LanguageModel
from saeflow.datasets.contexts import TokenFile
from saeflow.models import language
from saeflow.models.language_files import folder_of
from saeflow.rule import run
from saeflow.sae import formats, language_metrics
from saeflow.sae.metrics import measure

_ROWS = 8192


def main(*, model: list[Path], tokens: Path, store: Path, saes: list[Path], metrics: Path, cfg: dict) -> None:
    """
    Arguments:
        model: the model's folder, or its files.
        tokens: .parquet of `tokenize_texts`, of the split held out.
        store: manifest.json of that split.
        saes: cfg.json of each SAE, in the order variants x seeds.
        metrics: table to write, a row per SAE; `saeflow.sae.metrics` has the formula of each column, cross-entropies
            are in nats per token.
        cfg: `model` (its name), `settings` (its section), `hook`, `activations` (section), `variants`, `sae_seeds`,
            `device`.
    """
    opened, file = ActivationStore.open(store), TokenFile.open(tokens)
    batch_size = LanguageActivations.model_validate(cfg["activations"]).batch_size
    hook = LanguageModel.model_validate(cfg["settings"]).hooks[cfg["hook"]]
    keys = dict(zip(product(cfg["variants"], cfg["sae_seeds"]), saes, strict=True))
    loaded = {key: formats.load(path.parent, cfg["device"]) for key, path in keys.items()}
    measured = {
        key: measure(sae, opened.batches(_ROWS, shuffle=None, epochs=1, device=cfg["device"]))
        for key, sae in loaded.items()
    }
    mean = next(iter(measured.values())).reconstruction.x.mean
    replacements = language_metrics.ablations(mean)
    replacements |= {
        f"{variant}-s{seed}": language_metrics.reconstruction(loaded[variant, seed]) for variant, seed in keys
    }
    network = language.load(folder_of(model), cfg["settings"], cfg["device"])
    ce = language_metrics.cross_entropies(network, file.batches(batch_size), cfg["hook"], hook, replacements)
    rows = []
    for (variant, seed), result in measured.items():
        identity = {"model": cfg["model"], "hook_point": cfg["hook"], "variant": variant, "sae_seed": seed}
        sae = loaded[variant, seed]
        sizes = {"architecture": sae.architecture, "d_in": sae.d_in, "d_sae": sae.d_sae}
        rows.append(identity | sizes | result.metrics() | language_metrics.recovered(ce, f"{variant}-s{seed}"))
    parquet.write_table(pa.Table.from_pylist(rows), metrics)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
