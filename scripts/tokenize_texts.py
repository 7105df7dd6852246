"""Turn the study's documents into a model's tokens, packed into contexts; each split has documents of its own."""

from pathlib import Path

from saeflow.config.language import Text
from saeflow.datasets import contexts, texts
from saeflow.models import language
from saeflow.models.language_files import folder_of
from saeflow.rule import run


def main(*, documents: Path, model: list[Path], tokens: list[Path], cfg: dict) -> None:
    """
    Arguments:
        documents: .parquet of `build_texts`.
        model: the model's folder, or its files.
        tokens: .parquet to write, of each split.
        cfg: `text` (section), `settings` (the model's section), `seed` (root of the draw of the splits).
    Raises:
        TextError: fewer tokens than the study asks for.
    """
    text = Text.model_validate(cfg["text"])
    tokenizer = language.load_tokenizer(folder_of(model), cfg["settings"])
    for split, path in zip(texts.SPLITS, tokens, strict=True):
        own = (d for d in texts.read(documents) if texts.split_of(d[0], cfg["seed"], text.held_out_share) == split)
        packed = contexts.pack(
            own,
            tokenizer.encode,
            start=tokenizer.start,
            context_size=text.context_size,
            n_tokens=getattr(text, f"{split}_tokens"),
        )
        contexts.write(path, packed, context_size=text.context_size, start=tokenizer.start)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
