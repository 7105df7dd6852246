"""Compare what the study asks of a language model with what the model is, before any text is read for it."""

from pathlib import Path

from saeflow.models import language_outline
from saeflow.models.language import LanguageModelError
from saeflow.models.language_files import folder_of
from saeflow.rule import run


def main(*, model: list[Path], cfg: dict) -> None:
    """
    Arguments:
        model: the model's folder, or its files.
        cfg: `model` (its name), `asked`: arguments of `saeflow.models.language_outline.problems`.
    Raises:
        LanguageModelError: a line per thing that the study asks and the model does not have.
    """
    if found := list(language_outline.problems(cfg["model"], folder_of(model), **cfg["asked"])):
        raise LanguageModelError("\n".join(found))


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
