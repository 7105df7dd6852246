"""The stages of inverse embeddings one after another, for notebooks and for the workflow's scripts alike.

experiment = load_experiment_models(model=..., settings=..., hook=..., sae=..., stores=..., spec=..., seed=0)
activity, latents = collect_and_filter_data(experiment)
clusters = run_clustering(experiment, activity, latents)
cards = analyze_clusters(experiment, activity, latents, clusters)
chosen = select_features(experiment, activity, latents, clusters)
found = optimize_feature(experiment, activity, [c.feature for c in chosen])
explained = generate_explanations(experiment, activity, chosen, cards, found.texts)
visualize_results(...)
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from saeflow.activations import ActivationStore
from saeflow.config.inversion import Inversion
from saeflow.config.language import Hook
from saeflow.inversion import maps
from saeflow.inversion.explanations import llm, readings, rules, scoring, sentences
from saeflow.inversion.optimization import comparison
from saeflow.inversion.optimization.objective import Objective, Readout
from saeflow.inversion.optimization.vocabulary import Vocabulary
from saeflow.inversion.selection import activity as activities
from saeflow.inversion.selection import choice, clustering, filters
from saeflow.models import language
from saeflow.models.language_files import folder_of
from saeflow.reproduce import child_seed
from saeflow.sae import formats
from saeflow.sae.architectures import SparseAutoencoder

_WINDOWS = 64  # of the data set that a search of inputs starts from and takes tokens from, per feature
_THRESHOLD_WINDOWS = 1000  # of training text, in which a latent fires, and as many others, that tell a rule's threshold


@dataclass(frozen=True)
class Experiment:
    """What all stages share: model, tokenizer, SAE, its stores, settings, root seed."""

    model: nn.Module | None
    tokens: language.Tokens
    name: str
    hook: Hook
    sae: SparseAutoencoder
    sae_folder: Path
    stores: Mapping[str, Path]
    spec: Inversion
    seed: int

    def store(self, split: str) -> Any:
        """The activation store of a split, `train` or `held_out`."""
        return ActivationStore.open(self.stores[split])


def load_experiment_models(
    *,
    model: Path,
    settings: Mapping[str, Any],
    hook: Hook,
    sae: Path,
    stores: Mapping[str, Path],
    spec: Inversion,
    seed: int,
    device: str = "cpu",
    with_model: bool = True,
) -> Experiment:
    """Load what the stages need.

    Arguments:
        model: folder in Hugging Face's format.
        settings: section `language.models.<name>` as a dict.
        hook: that the SAE was trained on.
        sae: folder in SAELens's format.
        stores: manifest.json by split.
        with_model: whether the model itself is loaded; only the search for inputs needs it.
    """
    return Experiment(
        language.load(model, settings, device) if with_model else None,
        language.load_tokenizer(model, settings),
        hook.name,
        hook,
        formats.load(sae, device),
        sae,
        stores,
        spec,
        seed,
    )


def experiment_of_job(
    model: Sequence[Path], sae: Path, stores: Mapping[str, Path], cfg: Mapping[str, Any], *, with_model: bool = True
) -> Experiment:
    """What a job of the workflow works on.

    Arguments:
        model: the model's folder, or its files.
        sae: cfg.json of the SAE.
        cfg: `inversion` (section), `settings` (the model's section), `hook_point`, `seed`, `device`.
    """
    return load_experiment_models(
        model=folder_of(model),
        settings=cfg["settings"],
        hook=Hook.model_validate(cfg["hook_point"]),
        sae=sae.parent,
        stores=stores,
        spec=Inversion.model_validate(cfg["inversion"]),
        seed=cfg["seed"],
        device=cfg["device"],
        with_model=with_model,
    )


def collect_and_filter_data(
    experiment: Experiment, cache: Path | None = None
) -> tuple[activities.Activity, np.ndarray]:
    """How all latents fire over the training text, and those that pass the filters, ascending.

    Arguments:
        cache: folder that keeps what was collected, by content.
    """
    data, store = experiment.spec.data, experiment.store("train")
    sizes = (data.prompt_tokens, data.most_prompts)
    if cache is None:
        found = activities.collect(experiment.sae, store, *sizes)
    else:
        found = activities.collect_cached(
            experiment.sae_folder, experiment.sae, experiment.stores["train"], store, *sizes, cache
        )
    return found, filters.kept(found, filters.Filters(data.entropy, data.density), at_least=3)


def run_clustering(
    experiment: Experiment, activity: activities.Activity, latents: np.ndarray
) -> dict[str, clustering.Clusters]:
    """Clusters by `activity` and by `decoder`."""
    spec = experiment.spec.clustering
    settings = clustering.ClusterSettings(spec.method, spec.components, spec.min_size, spec.neighbours, spec.seeds)
    rows = experiment.sae.W_dec[torch.from_numpy(latents).to(experiment.sae.device)].float().cpu().numpy()
    vectors = {"activity": activity.maxima.tocsc()[:, latents].T.tocsr(), "decoder": rows}
    return {
        name: clustering.cluster(v, settings, child_seed(experiment.seed, "clustering", name))
        for name, v in vectors.items()
    }


def analyze_clusters(
    experiment: Experiment,
    activity: activities.Activity,
    latents: np.ndarray,
    clusters: Mapping[str, clustering.Clusters],
    promoted: Mapping[int, Sequence[str]] | None = None,
) -> list[choice.Card]:
    """Cards of the clusters that features are chosen by.

    Arguments:
        promoted: tokens that each latent's decoder row raises.
    """
    return choice.cards(latents, clusters[experiment.spec.clustering.by], activity, promoted or {})


def select_features(
    experiment: Experiment,
    activity: activities.Activity,
    latents: np.ndarray,
    clusters: Mapping[str, clustering.Clusters],
) -> list[choice.Chosen]:
    """Representative, extreme and boundary latents."""
    spec = experiment.spec.clustering
    return choice.choose(latents, clusters[spec.by], activity, spec.features)


def optimize_feature(
    experiment: Experiment, activity: activities.Activity, features: Sequence[int] | int
) -> comparison.Found:
    """Search for the inputs that drive one latent or several most, by every method."""
    features = [features] if isinstance(features, int) else list(features)
    spec, batch_size = experiment.spec.optimization, experiment.spec.hardware.batch_size
    readout = Readout.of(experiment.sae, torch.tensor(features))
    objective = Objective(
        experiment.model,
        experiment.name,
        experiment.hook,
        readout,
        experiment.tokens.start,
        spec.position,
        batch_size,
    )
    objective.check()
    vocabulary = Vocabulary(experiment.tokens, len(objective.embeddings))
    read = readings.read(experiment.sae, experiment.store("train"), features)
    windows = [readings.best_windows(read, i, _WINDOWS, spec.length) for i in range(len(features))]
    highest = torch.from_numpy(activity.highest[features].astype(np.float32))
    return comparison.compare(objective, vocabulary, windows, highest, features, spec, experiment.seed)


def generate_explanations(
    experiment: Experiment,
    activity: activities.Activity,
    chosen: Sequence[choice.Chosen],
    cards: Sequence[choice.Card] = (),
    found: pd.DataFrame | None = None,
    promoted: Mapping[int, Sequence[str]] | None = None,
    concepts: Mapping[int, Sequence[str]] | None = None,
) -> pd.DataFrame:
    """A sentence per latent with its evidence, its scores on held-out text, and those of the explanations to beat.

    Arguments:
        found: texts of `optimize_feature`.
        promoted: tokens that each latent's decoder row raises.
        concepts: concept tests that each latent passed.
    """
    spec, seed = experiment.spec.explanation, experiment.seed
    features = [c.feature for c in chosen]
    train = readings.read(experiment.sae, experiment.store("train"), features, spec.most_text)
    test = readings.read(experiment.sae, experiment.store("held_out"), features)
    draw = {"length": spec.window, "n": spec.examples, "quantiles": spec.quantiles}
    named, rows = {card.cluster: ", ".join(map(repr, card.tokens[:4])) for card in cards}, []
    for i, one in enumerate(chosen):
        fitting = scoring.trial(
            train, i, **draw | {"n": _THRESHOLD_WINDOWS}, seed=child_seed(seed, "fitting", one.feature)
        )
        testing = scoring.trial(test, i, **draw, seed=child_seed(seed, "testing", one.feature))
        rule = rules.fit(train, i, spec.most_tokens)
        made = {
            "": rule,
            "top_token_": rules.top_token(train, i),
            "random_": rules.random_tokens(train, spec.most_tokens, child_seed(seed, "random rule", one.feature)),
        }
        best = _best(found, one.feature)
        evidence = sentences.Evidence(
            one.feature,
            float(activity.density[one.feature]),
            sentences.tokens_of(rule, experiment.tokens.strings),
            list((promoted or {}).get(one.feature, ())),
            [
                sentences.marked(shown, len(shown) - 1)
                for shown in map(experiment.tokens.strings, readings.best_windows(train, i, 5, 16))
            ],
            *best,
            named.get(one.cluster) or None,
            list((concepts or {}).get(one.feature, ())),
        )
        row = {"feature": one.feature, "explanation": sentences.sentence(evidence)}
        if spec.endpoint:
            row["explanation_of_model"] = llm.explain(evidence, llm.Endpoint(**spec.endpoint.model_dump()))
        for prefix, explained in made.items():
            fitted = scoring.with_threshold(explained, train, fitting)
            result = scoring.score(fitted, test, testing, i, child_seed(seed, "score", one.feature))
            row |= {f"{prefix}{name}": value for name, value in asdict(result).items()}
        rows.append(row | {"evidence": json.dumps(evidence.record(), sort_keys=True)})
    return pd.DataFrame(rows)


def visualize_results(
    latents: np.ndarray,
    clusters: clustering.Clusters,
    chosen: Sequence[choice.Chosen],
    texts: Mapping[int, str],
    page: Path,
) -> None:
    """Write the interactive map of the latents; the other figures are drawn from tables when a study is published."""
    maps.write(page, latents, clusters.map, clusters.labels, {c.feature: c.role for c in chosen}, texts)


def _best(found: pd.DataFrame | None, feature: int) -> tuple[str | None, float | None]:
    """The text that drives a latent most, and its ratio."""
    if found is None:
        return None, None
    own = found[(found["feature"] == feature) & (found["method"] != "soft") & found["ratio"].notna()]
    if own.empty:
        return None, None
    row = own.loc[own["ratio"].idxmax()]
    return str(row["text"]), float(row["ratio"])
