"""Capture activations of a language model: one pass over each split writes every hook point, or a job's part of each.

A row is a text token; special tokens and the first token of each context, whose activations have another norm than all
others, are left out. The columns of a row's source say document, position in it, context and token.
"""

from contextlib import ExitStack
from itertools import product
from pathlib import Path

from saeflow.activations import Part, PartWriter, write_manifest
from saeflow.config.language import LanguageActivations, LanguageModel
from saeflow.datasets import texts
from saeflow.datasets.contexts import TokenFile
from saeflow.models import language, language_capture
from saeflow.models.language_files import folder_of
from saeflow.rule import run


def main(*, model: list[Path], tokens: list[Path], parts: list[Path], manifests: list[Path], cfg: dict) -> None:
    """
    Arguments:
        model: the model's folder, or its files.
        tokens: .parquet of `tokenize_texts`, of each split.
        parts: folder of this job's part of each store, in the order hook points x splits.
        manifests: manifest.json of each store, in that order, if this job writes the whole of them; else none.
        cfg: `model` (its name), `settings` (its section), `activations` (section), `device`, and with several jobs
            `shard`, the number of this one.
    Raises:
        LanguageModelError, HookPointError: a model, tokenizer, context or hook point that does not go with the others.
    """
    settings = LanguageModel.model_validate(cfg["settings"])
    activations = LanguageActivations.model_validate(cfg["activations"])
    folder, hooks = folder_of(model), settings.hooks
    network = language.load(folder, cfg["settings"], cfg["device"])
    files = dict(zip(texts.SPLITS, map(TokenFile.open, tokens), strict=True))
    tokenizer = language.load_tokenizer(folder, cfg["settings"])
    language.check(network, tokenizer, files["train"].context_size, cfg["model"])
    widths = language_capture.width(network, hooks, tokenizer.start or 0)
    folders = dict(zip(product(hooks, texts.SPLITS), parts, strict=True))
    for split, file in files.items():
        share = language_capture.Share.of(
            file,
            int(cfg.get("shard", 0)),
            activations.shards,
            chunk_rows=activations.chunk_rows,
            batch_size=activations.batch_size,
        )
        with ExitStack() as stack:
            writers = {
                name: stack.enter_context(
                    PartWriter(
                        folders[name, split],
                        d=widths[name],
                        dtype=activations.dtype,
                        chunk_rows=activations.chunk_rows,
                        source_columns=language_capture.SOURCE,
                        metadata={
                            "model": cfg["model"],
                            "split": split,
                            "hook_point": name,
                            "context_size": file.context_size,
                            "start_token": file.start,
                        },
                        if_exists="replace",
                    )
                )
                for name in hooks
            }
            batches = file.batches(activations.batch_size, share.contexts)
            language_capture.capture(network, batches, hooks, writers, share)
    for manifest, part in zip(manifests, parts, strict=False):
        write_manifest(manifest.parent, [Part.read(part)])


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
