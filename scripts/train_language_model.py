"""Train an embedded language model on the documents of the training split; saved as transformers reads it.

Its vocabulary is made from the same documents. Beside it stands how well it does, on the documents held out as well.
"""

from pathlib import Path

from saeflow.config.language import EmbeddedModel, Text
from saeflow.datasets import contexts, texts
from saeflow.models import language_training
from saeflow.reproduce import write_json
from saeflow.rule import run


def main(*, documents: Path, model: list[Path], training: Path, cfg: dict) -> None:
    """
    Arguments:
        documents: .parquet of `build_texts`.
        model: files of the model to write, all in one folder.
        training: .json to write: sizes, curve, and cross-entropy on documents held out, in nats per token.
        cfg: `text` (section), `settings` (the model's section, for `embedded`), `seed` (root of the draws), `device`.
    Raises:
        TextError: fewer tokens than the study asks for.
    """
    text = Text.model_validate(cfg["text"])
    spec = EmbeddedModel.model_validate(cfg["settings"]["embedded"])
    by_split: dict[str, list[tuple[int, str]]] = {split: [] for split in texts.SPLITS}
    for number, document in texts.read(documents):
        by_split[texts.split_of(number, cfg["seed"], text.held_out_share)].append((number, document))
    tokens = language_training.word_tokenizer((document for _, document in by_split["train"]), spec.vocabulary)
    packed = {
        split: contexts.Contexts.concatenate(
            contexts.pack(of, tokens.encode, start=tokens.start, context_size=text.context_size, n_tokens=None)
        )
        for split, of in by_split.items()
    }
    # Known before the training: the tokens of the study are these.
    for split, contexts_of_split in packed.items():
        contexts.refuse_fewer(int(contexts_of_split.is_text.sum()), getattr(text, f"{split}_tokens"), "documents")
    network = language_training.untrained(spec, len(tokens.tokenizer), text.context_size, cfg["seed"])
    curve = language_training.train(network, packed["train"], spec, seed=cfg["seed"], device=cfg["device"])
    content = {
        "parameters": sum(p.numel() for p in network.parameters()),
        "vocabulary": len(tokens.tokenizer),
        "train_tokens": int(packed["train"].is_text.sum()),
        "held_out_loss": language_training.mean_loss(network, packed["held_out"], spec.batch_size, cfg["device"]),
        "curve": curve,
    }
    language_training.save(network, tokens, model[0].parent)
    write_json(training, content)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
