"""Phase 1: concept vectors in a model's unembedding, what they show of the hierarchy, and the verdict with controls.

The same is measured without whitening, and on two hierarchies that are none: rows shuffled over the vocabulary, and
children under random parents.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from saeflow.config.geometry import Measures
from saeflow.geometry import hierarchy, polytopes, published, unembedding, verdict, whitening
from saeflow.geometry.concepts import Concepts
from saeflow.models.language_files import folder_of
from saeflow.reproduce import child_seed, write_arrays
from saeflow.rule import run


def main(
    *,
    model: list[Path],
    words: Path,
    teacher: Path,
    verdicts: Path,
    concepts: Path,
    angles: Path,
    projections: Path,
    points: Path,
    cfg: dict,
) -> None:
    """
    Arguments:
        model: the model's folder, or its files.
        words: .parquet of `build_concepts`.
        teacher: .npz to write: whitening, and concept vectors in each space.
        verdicts, concepts, angles, projections, points: tables to write: statistics with targets, intervals and
            verdicts; every concept's own; crossfit angles; the published projection test; polytopes.
        cfg: `measures` (section), `settings` (the model's section), `seed` (root of the draws).
    """
    spec = Measures.model_validate(cfg["measures"])
    kept = Concepts.load(words)
    gamma, bias, rows = unembedding.load(folder_of(model), cfg["settings"])
    white = whitening.fit(gamma, rows, spec.eigenvalue_floor)
    plain = whitening.euclidean(gamma, rows)
    g = white.unembeddings(gamma[rows])
    place = {int(token): i for i, token in enumerate(rows)}
    own = np.array([place[int(token)] for token in kept.tokens])
    options = {"seed": cfg["seed"], "n_splits": spec.splits, "n_resamples": spec.bootstrap}
    cases = {
        "model": (g, kept),
        "shuffled rows": (hierarchy.shuffled_rows(g, child_seed(cfg["seed"], "control")), kept),
        "random parents": (g, hierarchy.with_random_parents(kept, cfg["seed"])),
        "euclidean": (plain.unembeddings(gamma[rows]), kept),
    }
    measured = {name: hierarchy.measure(x, of, place, **options) for name, (x, of) in cases.items()}
    tables = {name: verdict.verdict(m).assign(case=name) for name, m in measured.items()}
    about = pd.DataFrame(
        {
            "statistic": ["vocabulary rows", "width", "effective rank", "eigenvalues floored"],
            "value": [len(rows), gamma.shape[1], white.effective_rank, white.n_floored],
            "target": "",
            "verdict": "",
            "case": "model",
        }
    )
    pd.concat([about, *tables.values()], ignore_index=True).to_parquet(verdicts, index=False)
    measured["model"].concepts.to_parquet(concepts, index=False)
    measured["model"].angles.to_parquet(angles, index=False)
    rng = np.random.default_rng(child_seed(cfg["seed"], "published"))
    others = np.setdiff1d(np.arange(len(rows)), own)
    tests = []
    for case in ("model", "shuffled rows"):
        for p, name in enumerate(kept.parents):
            test = published.projection_test(cases[case][0], own[kept.parent == p], others, rng)
            tests.append({"case": case, "concept": name, **test._asdict()})
    pd.DataFrame(tests).to_parquet(projections, index=False)
    taught = hierarchy.Teacher.fit(g[own], kept)
    noise = hierarchy.Teacher.fit(cases["shuffled rows"][0][own], kept)
    flat = hierarchy.Teacher.fit(cases["euclidean"][0][own], kept)
    polytopes.projected(g[own], kept, taught).to_parquet(points, index=False)
    arrays = {"mean": white.mean, "root": white.root, "inverse_root": white.inverse_root}
    arrays |= {"plain_root": plain.root, "plain_inverse_root": plain.inverse_root, "rows": rows}
    arrays |= {"g": g.astype(np.float32), "plain_g": cases["euclidean"][0].astype(np.float32)}
    arrays["bias"] = bias[rows]
    for name, vectors in (("teacher", taught), ("shuffled_teacher", noise), ("euclidean_teacher", flat)):
        arrays |= {f"{name}.parents": vectors.parents, f"{name}.deltas": vectors.deltas}
    write_arrays(teacher, arrays)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
