"""Phase 4: concept vectors added at the final layer and after an inner block, beside directions that mean nothing."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from saeflow.config.geometry import Interventions
from saeflow.datasets.contexts import TokenFile
from saeflow.geometry import hierarchy, interventions, steering_verdict
from saeflow.geometry.concepts import Concepts
from saeflow.geometry.contexts import NONE, LabelledContexts
from saeflow.models import language
from saeflow.models.language_files import folder_of
from saeflow.reproduce import child_seed
from saeflow.rule import run

SHARES = (0.25, 0.5, 1.0, 2.0)
"""Lengths of steps after the inner block, in mean lengths of its activations."""


def main(
    *,
    model: list[Path],
    tokens: Path,
    words: Path,
    teacher: Path,
    labelled: Path,
    effects: Path,
    verdicts: Path,
    cfg: dict,
) -> None:
    """
    Arguments:
        model: the model's folder, or its files.
        tokens: .parquet of `tokenize_texts`, of documents held out.
        words, teacher, labelled: of `build_concepts`, `measure_geometry` and `label_contexts`.
        effects: table to write, a row per site, direction and dose.
        verdicts: table to write: parent vectors against random and shuffled directions.
        cfg: `interventions` (section), `inner` (module path), `bootstrap`, `settings` (the model's section), `seed`,
            `device`.
    """
    spec = Interventions.model_validate(cfg["interventions"])
    kept, test = Concepts.load(words), LabelledContexts.load(labelled).part("test")
    with np.load(teacher, allow_pickle=False) as stored:
        arrays = dict(stored)
    g, rows = arrays["g"].astype(float), arrays["rows"]
    place = {int(token): i for i, token in enumerate(rows)}
    own = np.array([place[int(token)] for token in kept.tokens])
    shuffled = hierarchy.shuffled_rows(g, child_seed(cfg["seed"], "control"))
    h = test.h[test.parent == NONE][: spec.contexts].astype(float)
    base = h @ arrays["root"] @ g.T + arrays["bias"]
    network = language.load(folder_of(model), cfg["settings"], cfg["device"])
    read = next(TokenFile.open(tokens).batches(spec.contexts))
    inner = interventions.InnerBlock(
        network, cfg["inner"], torch.from_numpy(read.tokens), rows, lambda v: v @ arrays["inverse_root"]
    )
    doses = sorted({*spec.doses, spec.logits})
    found = []
    for direction in interventions.directions(g, shuffled, kept, own, cfg["seed"]):
        about = {"concept": direction.concept, "kind": direction.kind}
        for dose, measured in zip(doses, interventions.at_final_layer(base, g, direction, doses), strict=True):
            found.append({"site": "final layer", **about, "dose": dose, **measured._asdict()})
        if direction.kind != "child":
            for share in SHARES:
                measured = inner.measured(direction, share)
                found.append({"site": cfg["inner"], **about, "dose": share, **measured._asdict()})
    table = pd.DataFrame(found)
    table.to_parquet(effects, index=False)
    rng = np.random.default_rng(child_seed(cfg["seed"], "steering verdict"))
    steering_verdict.verdict(table, spec.logits, cfg["bootstrap"], rng).to_parquet(verdicts, index=False)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
