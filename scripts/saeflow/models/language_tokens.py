"""The tokenizer of a language model: ids of texts, which of them are special, tokens as readers see them."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from saeflow.models.language_configuration import LOCAL, LanguageModelError, configuration, short
from saeflow.models.language_files import check_tokenizer

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # no tokenizer forks threads of its own


@dataclass(frozen=True)
class Tokens:
    """A tokenizer.

    Arguments:
        tokenizer: of transformers.
        start: id of the token that a document begins with; none if the tokenizer has none.
        embedded: ids that the model embeds, from 0; all of the tokenizer's if not given.
    """

    tokenizer: Any
    start: int | None
    embedded: int | None = None

    @cached_property
    def encode(self) -> "Encoder":
        """Turns texts into ids."""
        return Encoder(self.tokenizer, self.special, self.embedded)

    def with_start(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of several texts, each behind the start token, where there is one and the text does not begin with it."""
        start = [] if self.start is None else [self.start]
        return [ids if ids[:1] == start else start + ids for ids in self.encode(texts)]

    @cached_property
    def special(self) -> frozenset[int]:
        """Ids that are no text, wherever they stand: start, end, padding, the marks of a chat.

        The token for what a tokenizer cannot read is text where such a thing may be read, as by a vocabulary of words.
        Where bytes can stand for everything, only its name gives it, and it is as special as the others.
        """
        return _special(self.tokenizer)

    @cached_property
    def no_words(self) -> frozenset[int]:
        """Ids that no vocabulary of words has: special tokens, and the one for what the tokenizer cannot read."""
        return self.special.union(self.tokenizer.all_special_ids)

    def strings(self, ids: Sequence[int]) -> list[str]:
        """Each token as readers see it: words with the space in front of them, never empty."""
        found = []
        for i, token in zip(ids, self.tokenizer.convert_ids_to_tokens(list(ids)), strict=True):
            if token is not None and "▁" in token:  # SentencePiece; decoding one token would drop its space
                text = token.replace("▁", " ")
            else:
                text = self.tokenizer.decode([i], clean_up_tokenization_spaces=False)
            found.append(text if text and "\ufffd" not in text else token or f"<{i}>")
        return found


@dataclass(frozen=True)
class Encoder:
    """Turns texts into ids, and adds none.

    A special token that a text spells out has its id, as in training.

    Arguments:
        tokenizer: of transformers.
        special: ids of special tokens.
        embedded: ids that the model embeds, from 0; all of the tokenizer's if not given.
    """

    tokenizer: Any
    special: frozenset[int]
    embedded: int | None = None

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of several texts.

        Raises:
            LanguageModelError: a text has a token that the model does not embed; names it.
        """
        found = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        for ids in found if self.embedded is not None else ():
            if ids and (highest := max(ids)) >= self.embedded:
                raise LanguageModelError(
                    f"a text has the token '{self.tokenizer.convert_ids_to_tokens(highest)}' (id {highest}), but the "
                    f"model embeds the ids below {self.embedded} alone; take it out of the text"
                )
        return found


_UNREAD = "\U00012000 \ue000"
"""A cuneiform sign and a character for private use, which few vocabularies have."""


def _special(tokenizer: Any) -> frozenset[int]:
    """Ids of `Tokens.special`."""
    names = tokenizer.special_tokens_map
    found = {*tokenizer.all_special_ids, *(i for i, token in tokenizer.added_tokens_decoder.items() if token.special)}
    unread = tokenizer.unk_token_id
    has_one_role = sum(value == names.get("unk_token") for value in names.values()) == 1
    if has_one_role and unread in tokenizer(_UNREAD, add_special_tokens=False)["input_ids"]:
        found.discard(unread)
    return frozenset(found - {None})


def load_tokenizer(folder: Path, settings: Mapping[str, Any]) -> Tokens:
    """The tokenizer of a model's folder.

    Arguments:
        folder: with the tokenizer's files.
        settings: section `language.models.<name>` as a dict.
    Raises:
        ModelFilesError, LanguageModelError: the folder has no tokenizer that transformers can read, or its model is
            none; names the file.
    """
    from tokenizers import __version__
    from transformers import AutoTokenizer

    config = configuration(folder, settings) if (folder / "config.json").is_file() else None
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=settings["trust_remote_code"], **LOCAL)
    except Exception as error:  # tokenizers raises bare ones
        check_tokenizer(folder)
        what = f"{folder}: no tokenizer that transformers can read"
        if (file := folder / "tokenizer.json").is_file():
            what = f"{file}: tokenizers {__version__} cannot read it, a newer one may have written it"
        raise LanguageModelError(f"{what} ({short(error)})") from error
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return Tokens(tokenizer, start, getattr(config and config.get_text_config(decoder=True), "vocab_size", None))
