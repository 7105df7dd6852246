"""Contexts of one model by the concept that it is about to name: half with a label, if the text has as many."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from saeflow.config.geometry import LabelledText
from saeflow.datasets.contexts import TokenFile
from saeflow.geometry import contexts
from saeflow.geometry.concepts import Concepts
from saeflow.models import language, readout
from saeflow.models.language_files import folder_of
from saeflow.reproduce import child_seed
from saeflow.rule import run


def main(
    *, model: list[Path], tokens: list[Path], words: Path, prompts: Path, labelled: Path, counts: Path, cfg: dict
) -> None:
    """
    Arguments:
        model: the model's folder, or its files.
        tokens: .parquet of `tokenize_texts`: of the training split, from which SAEs are trained, and of documents held
            out, on which latents are matched and measured.
        words, prompts: of `build_concepts`; prompts are for training.
        labelled, counts: .npz and table to write.
        cfg: `contexts` (section), `settings` (the model's section), `seed` (root of the draws), `device`.
    Raises:
        ValueError: fewer tokens than contexts asked for.
    """
    spec = LabelledText.model_validate(cfg["contexts"])
    folder, concepts = folder_of(model), Concepts.load(words)
    network = language.load(folder, cfg["settings"], cfg["device"])
    tokenizer = language.load_tokenizer(folder, cfg["settings"])

    def labels_of(h: torch.Tensor) -> contexts.Labels:
        n_tokens = len(network.get_output_embeddings().weight)
        return contexts.label(h, lambda x: readout.logits(network, x).cpu(), concepts, n_tokens, spec.mass)

    found, rows = [], []
    for part, (path, wanted) in enumerate(zip(tokens, ((spec.train, 0, 0), (0, spec.select, spec.test)), strict=True)):
        batches = ((b.tokens, b.is_text) for b in TokenFile.open(path).batches(spec.batch_size))
        states = list(contexts.final_states(network, batches))
        h, following = (torch.cat(column) for column in zip(*states, strict=True))
        if part == 0 and len(table := pd.read_parquet(prompts)):
            said = contexts.prompt_states(network, tokenizer, list(table["prompt"]), spec.batch_size)
            h = torch.cat([h, said])
            following = torch.cat([following, torch.full((len(said),), contexts.NONE)])
        labels = labels_of(h)
        rng = np.random.default_rng(child_seed(cfg["seed"], "contexts", part))
        chosen, split = contexts.choose(labels.parent != contexts.NONE, wanted, spec.concept_share, rng)
        found.append((h[chosen].numpy(), following.numpy()[chosen], labels.parent[chosen], labels.child[chosen], split))
        name = ("train", "held out")[part]
        rows += [
            (name, "read", len(h)),
            (name, "with a label", int((labels.parent != contexts.NONE).sum())),
            (name, "chosen", len(chosen)),
            (name, "chosen with a label", int((labels.parent[chosen] != contexts.NONE).sum())),
            (name, "parents seen", len(np.unique(labels.parent[chosen])) - 1),
        ]
    contexts.LabelledContexts(*map(np.concatenate, zip(*found, strict=True))).save(labelled)
    pd.DataFrame(rows, columns=["documents", "what", "number"]).to_csv(counts, index=False)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
