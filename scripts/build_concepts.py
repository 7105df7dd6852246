"""Concepts of one model: nouns of a hierarchy that are one token each, held out or not, what was excluded, prompts."""

from pathlib import Path

import pandas as pd

from saeflow.config.geometry import Concepts
from saeflow.datasets import wordnet
from saeflow.datasets.hierarchy import Hierarchy
from saeflow.geometry import concepts
from saeflow.models import language
from saeflow.models.language_files import folder_of
from saeflow.rule import run


def main(
    *, model: list[Path], hierarchy: Path | list[Path], words: Path, counts: Path, prompts: Path, cfg: dict
) -> None:
    """
    Arguments:
        model: the model's folder, or its files.
        hierarchy: .yaml of nouns; empty for WordNet.
        words, counts, prompts: tables to write: tokens of concepts, numbers of what was kept and excluded, prompts.
        cfg: `concepts` (section), `settings` (the model's section), `latents` of the hierarchical SAEs that tell
            concepts apart, as `saeflow.geometry.concepts.refuse_more` takes them, or none; `seed` (root of the draws).
    Raises:
        ValueError: too few concepts are left, or more than the SAEs have latents.
    """
    spec = Concepts.model_validate(cfg["concepts"])
    folder = folder_of(model)
    tokens = language.load_tokenizer(folder, cfg["settings"])
    vocabulary = concepts.single_tokens(tokens.tokenizer.get_vocab(), tokens.no_words)
    if spec.source == "wordnet":
        lower = [word for word in vocabulary if word.islower() and len(word) > 2]
        found = wordnet.hierarchies(
            lower,
            spec.synsets,
            senses=spec.senses,
            min_noun_share=spec.min_noun_share,
            min_words=spec.min_words,
            min_children=spec.min_children,
        )
    else:
        found = {
            parent: {child.name: child.words for child in children}
            for parent, children in Hierarchy.load(hierarchy).parents.items()
        }
    kept, excluded = concepts.build(
        found,
        vocabulary,
        seed=cfg["seed"],
        held_out_share=spec.held_out_share,
        min_words=spec.min_words,
        min_children=spec.min_children,
        all_forms=spec.all_forms,
    )
    if cfg["latents"]:
        concepts.refuse_more(kept, **cfg["latents"])
    kept.save(words)
    rows = pd.DataFrame({"what": list(excluded), "number": list(excluded.values())})
    rows.to_csv(counts, index=False)
    concepts.prompts(kept, spec.templates, spec.prompts, cfg["seed"]).to_parquet(prompts, index=False)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
