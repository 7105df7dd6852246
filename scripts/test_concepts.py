"""Test which features of an SAE tell the sentences of each concept from all others, beside what chance and the dense
activations do.

A concept that no feature tells apart better than under shuffled labels has failed, and the table says so; it also says
whether the best of as many features with random weights does as well.
"""

import logging
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from saeflow.config.language import Hook
from saeflow.datasets import concept_texts
from saeflow.features import concept_tests
from saeflow.features.sentence_scores import sentence_scores, with_random_weights
from saeflow.models import language
from saeflow.models.language_files import folder_of
from saeflow.reproduce import child_seed
from saeflow.rule import run
from saeflow.sae import formats

log = logging.getLogger(__name__)


def main(
    *, model: list[Path], saes: list[Path], texts: list[Path], scores: list[Path], verdicts: list[Path], cfg: dict
) -> None:
    """
    Arguments:
        model: the model's folder, or its files.
        saes: cfg.json of each variant's SAE.
        texts: .txt of each concept, a sentence per line.
        scores: tables to write, one per SAE: a row per concept and rank of `concept_tests.evaluate`.
        verdicts: tables to write, one per SAE: a row per concept.
        cfg: `model` (name), `settings` (its section), `hook` (name), `hook_point` (its section), `concepts` (section),
            `variants`, `seed`, `device`.
    """
    concepts, folder, spec = concept_texts.read(texts), folder_of(model), cfg["concepts"]
    seed = child_seed(cfg["seed"], "concepts", cfg["model"], cfg["hook"])
    trained = [formats.load(path.parent, cfg["device"]) for path in saes]
    untrained = [with_random_weights(sae, child_seed(seed, "control", i)) for i, sae in enumerate(trained)]
    features, dense = sentence_scores(
        language.load(folder, cfg["settings"], cfg["device"]),
        language.load_tokenizer(folder, cfg["settings"]),
        Hook.model_validate(cfg["hook_point"]),
        concepts.sentences,
        trained + untrained,
    )
    n = len(trained)
    for variant, own, control, *outputs in zip(
        cfg["variants"], features[:n], features[n:], scores, verdicts, strict=True
    ):
        found, rows = concept_tests.evaluate(
            own,
            dense,
            concepts.labels,
            concepts.names,
            control=control,
            n_splits=spec["splits"],
            n_shuffles=spec["shuffles"],
            top=spec["top"],
            seed=seed,
        )
        for verdict in found:
            log.info("%s, %s", variant, verdict.sentence())
        for table, path in zip((rows, [verdict._asdict() for verdict in found]), outputs, strict=True):
            parquet.write_table(pa.Table.from_pylist(table), path)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
