"""Language models: the cross-entropy of text held out with reconstructions in place of activations."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from saeflow.activations import ActivationStore
from saeflow.config.language import LanguageModel
from saeflow.datasets.inputs.texts import Texts
from saeflow.models import language
from saeflow.models.language_files import folder_of
from saeflow.sae import language_metrics
from saeflow.sae.effects import EFFECTS, Saes
from saeflow.sae.metrics import measure as measured_on

_ROWS = 8192


@EFFECTS.register("transformers")
def measure(
    network: Sequence[Path],
    given: Sequence[Path],
    stores: Sequence[ActivationStore],
    saes: Sequence[Saes],
    cfg: Mapping[str, Any],
) -> Iterator[tuple[int, tuple[str, int], dict[str, Any]]]:
    """Reconstruction, sparsity and cross-entropy, in nats per token, of each SAE; one pass of the model for all."""
    section = cfg["section"]
    (store,), (of_model,) = stores, saes
    measured = {
        key: measured_on(sae, store.batches(_ROWS, shuffle=None, epochs=1, device=cfg["device"]))
        for key, sae in of_model.items()
    }
    mean = next(iter(measured.values())).reconstruction.x.mean
    replacements = language_metrics.ablations(mean)
    replacements |= {
        f"{variant}-s{seed}": language_metrics.reconstruction(sae) for (variant, seed), sae in of_model.items()
    }
    model = language.load(folder_of(network), section, cfg["device"])
    held_out = Texts.open(given).files[Texts.splits[1]]
    hook = LanguageModel.model_validate(section).hooks[cfg["hook"]]
    batches = held_out.batches(cfg["batch_size"])
    losses = language_metrics.cross_entropies(model, batches, cfg["hook"], hook, replacements)
    for (variant, seed), result in measured.items():
        sae = of_model[variant, seed]
        sizes = {"architecture": sae.architecture, "d_in": sae.d_in, "d_sae": sae.d_sae}
        recovered = language_metrics.recovered(losses, f"{variant}-s{seed}")
        yield 0, (variant, seed), sizes | result.metrics() | recovered
