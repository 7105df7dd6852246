"""Choose the features of an SAE that are worth asking about: one pass over its store, filters, clusters, choice."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
from pyarrow import parquet

from saeflow.inversion import pipeline
from saeflow.inversion.selection import filters
from saeflow.reproduce import write_json
from saeflow.rule import run


def main(
    *,
    model: list[Path],
    sae: Path,
    store: Path,
    features: Path,
    activity: Path,
    selection: Path,
    distances: Path,
    summary: Path,
    cfg: dict,
) -> None:
    """
    Arguments:
        model: the model's folder, or its files.
        sae: cfg.json of the SAE.
        store: manifest.json of the training split.
        features: table of `analyze_features`.
        activity: .npz to write, of `saeflow.inversion.selection.activity`.
        selection: table to write, a row per latent: filters, clusters, place on the map, role if it was chosen.
        distances: table to write, the curves that DBSCAN's eps was read from; empty without it.
        summary: .json to write: both clusterings and what they are worth, cards, the chosen latents.
        cfg: `inversion` (section), `settings` (the model's section), `hook_point`, `seed`, `device`.
    """
    experiment = pipeline.experiment_of_job(model, sae, {"train": store}, cfg, with_model=False)
    spec = experiment.spec
    found, latents = pipeline.collect_and_filter_data(experiment)
    found.write(activity)
    clusters = pipeline.run_clustering(experiment, found, latents)
    known = parquet.read_table(features, columns=["feature", "top_tokens"]).to_pydict()
    promoted = dict(zip(known["feature"], known["top_tokens"], strict=True))
    cards = pipeline.analyze_clusters(experiment, found, latents, clusters, promoted)
    chosen = {one.feature: one for one in pipeline.select_features(experiment, found, latents, clusters)}
    table = pd.DataFrame({"feature": np.arange(len(found.counts)), "entropy": found.entropy, "density": found.density})
    limits = filters.Filters(spec.data.entropy, spec.data.density)
    for name, mask in filters.passes(found, limits).items():
        table[f"passes_{name}"] = mask
    for name, result in clusters.items():
        table[f"cluster_{name}"] = pd.array([pd.NA] * len(table), dtype="Int64")
        table.loc[latents, f"cluster_{name}"] = result.labels
        table.loc[latents, [f"{name}_x", f"{name}_y"]] = result.map
    table["role"] = [chosen[i].role if i in chosen else None for i in table["feature"]]
    table["reason"] = [chosen[i].reason if i in chosen else None for i in table["feature"]]
    table.to_parquet(selection)
    curves = [
        pd.DataFrame({"clustering": name, "distance": result.distances, "eps": result.eps})
        for name, result in clusters.items()
        if result.distances is not None
    ]
    empty = pd.DataFrame({"clustering": pd.Series(dtype=str), "distance": [], "eps": []})
    pd.concat(curves or [empty]).to_parquet(distances)
    worth = {
        name: {
            "clusters": result.n_clusters,
            "stability": result.stability,
            "silhouette": result.silhouette,
            "noise_share": result.noise_share,
        }
        for name, result in clusters.items()
    }
    content = {"clusterings": worth, "by": spec.clustering.by, "latents": len(latents)}
    content |= {"cards": [dataclasses.asdict(card) for card in cards]}
    write_json(summary, content | {"chosen": [dataclasses.asdict(one) for one in chosen.values()]})


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
