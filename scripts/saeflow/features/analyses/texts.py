"""Features of SAEs on language models: the contexts in which they fire, what they promote, what fires with them.

One pass over the training text for each SAE. `saeflow.features.dashboards` has the columns. Beside the table: one of
the contexts in which the features fire most, and a summary.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pyarrow import parquet

from saeflow.activations import ActivationStore
from saeflow.config.language import LanguageFeatures, LanguageModel
from saeflow.features import dashboards, logit_lens
from saeflow.features.analyses import ANALYSES, Analyzed
from saeflow.models import language
from saeflow.models.language_files import folder_of, revision_of
from saeflow.reproduce import write_json
from saeflow.sae import formats

_LOSSES = ("ce_clean", "ce_sae", "ce_zero", "ce_mean", "ce_recovered_zero", "ce_recovered_mean")


@ANALYSES.register("texts")
def analyze_texts(
    network: Sequence[Path],
    given: Sequence[Path],
    stores: Mapping[str, Sequence[Path]],
    metrics: Sequence[Path],
    saes: Sequence[Analyzed],
    cfg: Mapping[str, Any],
) -> Iterator[str]:
    """`saeflow.features.dashboards.analyze` of each SAE on the training text."""
    spec, section = LanguageFeatures.model_validate(cfg["features"]), cfg["section"]
    hook = LanguageModel.model_validate(section).hooks[cfg["hook"]]
    opened, folder = ActivationStore.open(stores["train"][0]), folder_of(network)
    readout = dashboards.Readout(
        # The model itself is let go: only its readout is used.
        logit_lens.unembedding(language.load(folder, section, cfg["device"]), opened.shape[1], hook),
        language.load_tokenizer(folder, section).strings,
    )
    measured = {(row["variant"], row["sae_seed"]): row for row in parquet.read_table(metrics[0]).to_pylist()}
    for one in saes:
        sae = formats.load(one.sae.parent, cfg["device"])
        contexts, summary = one.beside
        numbers = dashboards.analyze(sae, opened, readout, spec, features=one.features, contexts=contexts)
        row = measured[one.variant, one.seed]
        content = {
            "study": cfg["study"],
            **cfg["members"][one.member],
            "model_revision": revision_of(folder),
            "variant": one.variant,
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
            "seed": one.seed,
            "config_digest": cfg["config_digest"],
        }
        write_json(summary, content)
        yield f"{one.variant}: {sae.d_sae} features"
