"""Work out what the features of one hook point's SAEs show: one pass over the training text for each SAE.

For each: a table of features, one of the contexts in which they fire most, and a summary. Only the SAEs of the first
seed; `saeflow.features.dashboards` has the columns.
"""

import logging
from pathlib import Path

from pyarrow import parquet

from saeflow.activations import ActivationStore
from saeflow.config.language import LanguageFeatures, LanguageModel
from saeflow.features import dashboards, logit_lens
from saeflow.models import language
from saeflow.models.language_files import folder_of, revision_of
from saeflow.reproduce import write_json
from saeflow.rule import run
from saeflow.sae import formats

log = logging.getLogger(__name__)

_LOSSES = ("ce_clean", "ce_sae", "ce_zero", "ce_mean", "ce_recovered_zero", "ce_recovered_mean")


def main(
    *,
    model: list[Path],
    store: Path,
    saes: list[Path],
    metrics: Path,
    features: list[Path],
    contexts: list[Path],
    summaries: list[Path],
    cfg: dict,
) -> None:
    """
    Arguments:
        model: the model's folder, or its files.
        store: manifest.json of the training split.
        saes: cfg.json of each variant's SAE.
        metrics: table of `evaluate_language_saes`.
        features, contexts, summaries: files to write, one of each per variant.
        cfg: `study` (its name), `model` (name), `settings` (its section), `hook`, `features` (section), `variants`,
            `sae_seed`, `config_digest`, `device`.
    """
    spec = LanguageFeatures.model_validate(cfg["features"])
    hook = LanguageModel.model_validate(cfg["settings"]).hooks[cfg["hook"]]
    opened, folder = ActivationStore.open(store), folder_of(model)
    readout = dashboards.Readout(
        # The model itself is let go: only its readout is used.
        logit_lens.unembedding(language.load(folder, cfg["settings"], cfg["device"]), opened.shape[1], hook),
        language.load_tokenizer(folder, cfg["settings"]).strings,
    )
    measured = {(row["variant"], row["sae_seed"]): row for row in parquet.read_table(metrics).to_pylist()}
    for variant, path, *outputs in zip(cfg["variants"], saes, features, contexts, summaries, strict=True):
        sae = formats.load(path.parent, cfg["device"])
        numbers = dashboards.analyze(sae, opened, readout, spec, features=outputs[0], contexts=outputs[1])
        row = measured[variant, cfg["sae_seed"]]
        content = {
            "study": cfg["study"],
            "model": cfg["model"],
            "model_revision": revision_of(folder),
            "hook_point": cfg["hook"],
            "variant": variant,
            "architecture": sae.architecture,
            "d_in": sae.d_in,
            "d_sae": sae.d_sae,
            # Measured on text held out; how many latents are dead, on the text that the features were read from.
            "l0": row["l0"],
            "explained_variance": row["explained_variance"],
            **{name: row[name] for name in _LOSSES},
            "dead_share": numbers["dead_share"],
            "n_tokens": numbers["n_tokens"],
            "context_size": opened.metadata["context_size"],
            "seed": cfg["sae_seed"],
            "config_digest": cfg["config_digest"],
        }
        write_json(outputs[2], content)
        log.info("%s: %d features", variant, sae.d_sae)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
