"""Test which features of an SAE tell the sentences of each concept from all others, beside what chance and the dense
activations do.

A concept that no feature tells apart better than under shuffled labels, or than the best of as many features with
random weights, has failed, and the table says so.
"""

import logging
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from saeflow.datasets import concept_texts
from saeflow.features import concept_tests
from saeflow.features.sentence_scores import sentence_scores, with_random_weights
from saeflow.reproduce import child_seed
from saeflow.rule import run
from saeflow.sae import formats

log = logging.getLogger(__name__)


def main(*, model: Path, sae: Path, texts: list[Path], scores: Path, verdicts: Path, cfg: dict) -> None:
    """
    Arguments:
        model: folder of a Hugging Face causal language model with its tokenizer.
        sae: cfg.json of the SAE.
        texts: .txt of each concept, a sentence per line.
        scores: table to write, a row per concept and rank of `concept_tests.evaluate`.
        verdicts: table to write, a row per concept.
        cfg: `hook` ({module, side}), `splits`, `shuffles`, `top`, `seed`, `device`.
    """
    concepts = concept_texts.read(texts)
    network, tokenizer = _load(model, cfg["device"])
    trained = formats.load(sae.parent, cfg["device"])
    untrained = with_random_weights(trained, child_seed(cfg["seed"], "concepts", "control"))
    (features, dense), (control, _) = (
        sentence_scores(network, tokenizer, cfg["hook"]["module"], concepts.sentences, one, side=cfg["hook"]["side"])
        for one in (trained, untrained)
    )
    found, rows = concept_tests.evaluate(
        features,
        dense,
        concepts.labels,
        concepts.names,
        control=control,
        n_splits=cfg["splits"],
        n_shuffles=cfg["shuffles"],
        top=cfg["top"],
        seed=child_seed(cfg["seed"], "concepts"),
    )
    for verdict in found:
        log.info("%s", verdict.sentence())
    parquet.write_table(pa.Table.from_pylist(rows), scores)
    parquet.write_table(pa.Table.from_pylist([verdict._asdict() for verdict in found]), verdicts)


def _load(folder: Path, device: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The one place where a model is loaded: in single precision, without running code that lies beside it."""
    network = AutoModelForCausalLM.from_pretrained(folder, dtype="float32", local_files_only=True)
    return network.to(device).eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
