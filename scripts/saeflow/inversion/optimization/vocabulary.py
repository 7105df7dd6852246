"""The tokens that a found text may be made of, and whether it survives being pasted: decoded and tokenised again."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saeflow.models.language import Tokens


class VocabularyError(ValueError):
    """A tokenizer that leaves nothing to search in."""


class Vocabulary:
    """Tokens that a user can type.

    Special tokens, bytes that are no text by themselves, as a newline is where it has no other token, and rows of the
    embedding without a token are left out.

    Arguments:
        tokens: tokenizer.
        n_rows: of the model's embedding.
    Raises:
        VocabularyError: no token is left.
    """

    def __init__(self, tokens: Tokens, n_rows: int) -> None:
        self.tokens = tokens
        tokenizer = tokens.tokenizer
        n = min(n_rows, len(tokenizer))
        texts = tokenizer.convert_ids_to_tokens(list(range(n)))
        shown = tokens.strings(range(n)) if n else []
        self._fast = getattr(tokenizer, "backend_tokenizer", None)
        self.allowed: Bool[Tensor, " n_rows"] = torch.zeros(n_rows, dtype=torch.bool)
        for i, (token, text) in enumerate(zip(texts, shown, strict=True)):
            is_text = token is not None and i not in tokens.no_words and "\ufffd" not in text
            if is_text and token.startswith("<0x") and token.endswith(">"):
                # The byte of a letter that has a token of its own stands for it nowhere, and no key types a bell.
                is_text = (text in "\n\t" or text.isprintable()) and i in self.tokenised([f"a{text}a"])[0]
            self.allowed[i] = is_text
        self.ids: Int[Tensor, " n_allowed"] = self.allowed.nonzero()[:, 0]
        if not len(self.ids):
            raise VocabularyError(f"none of the tokenizer's {n} tokens is text that can be typed")

    def text(self, ids: Sequence[int]) -> str:
        """What a user would paste."""
        return self.texts([ids])[0]

    def texts(self, sequences: Sequence[Sequence[int]]) -> list[str]:
        """What a user would paste, for several sequences of ids."""
        if self._fast is not None:
            return self._fast.decode_batch([list(ids) for ids in sequences], skip_special_tokens=False)
        decode = self.tokens.tokenizer.decode
        return [decode(list(ids), clean_up_tokenization_spaces=False) for ids in sequences]

    def tokenised(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts, without special tokens."""
        if self._fast is not None:
            return [found.ids for found in self._fast.encode_batch(list(texts), add_special_tokens=False)]
        return self.tokens.encode(texts)

    def survive(self, sequences: Int[Tensor, "n length"]) -> Bool[Tensor, " n"]:
        """Whether the text of each sequence is tokenised into this very sequence."""
        lists: list[Any] = sequences.tolist()
        again = self.tokenised(self.texts(lists)) if lists else []
        return torch.tensor([a == b for a, b in zip(lists, again, strict=True)], dtype=torch.bool)

    def can_type(self, ids: Sequence[int]) -> bool:
        """Whether all tokens of a sequence are in the vocabulary, and it survives."""
        sequence = torch.tensor(list(ids), dtype=torch.long)
        return bool(self.allowed[sequence].all()) and bool(self.survive(sequence[None]).all())

    def random(self, n: int, length: int, generator: torch.Generator) -> Int[Tensor, "n length"]:
        """Sequences of tokens drawn with equal chances that survive.

        Few random neighbours stay apart when they are tokenised again, so each sequence grows token by token.

        Raises:
            VocabularyError: a text that cannot be continued by any token tried.
        """
        found = torch.empty(n, 0, dtype=torch.long)
        for _ in range(length):
            found = self._grown(found, generator)
        return found

    def _grown(self, found: Int[Tensor, "n length"], generator: torch.Generator) -> Int[Tensor, "n longer"]:
        grown = torch.cat([found, found.new_zeros(len(found), 1)], 1)
        open_ = torch.ones(len(found), dtype=torch.bool)
        for _ in range(200):
            rows = open_.nonzero()[:, 0]
            if not len(rows):
                return grown
            grown[rows, -1] = self.ids[torch.randint(len(self.ids), (len(rows),), generator=generator)]
            open_[rows] = ~self.survive(grown[rows])
        stuck = self.text(grown[open_][0, :-1].tolist())
        raise VocabularyError(f"no token tried can follow {stuck!r} and be found again when the text is tokenised")

    def promising(
        self, gradients: Float[Tensor, "n length d"], embeddings: Float[Tensor, "n_rows d"], k: int
    ) -> Int[Tensor, "n length k"]:
        """Allowed tokens whose embedding goes farthest along a gradient, at each place (HotFlip, Ebrahimi et al. 2018).

        Arguments:
            gradients: of what is to grow, with respect to the embeddings.
            embeddings: of all tokens.
            k: tokens per place; fewer if fewer are allowed.
        """
        table = embeddings[self.ids.to(embeddings.device)]
        k = min(k, len(table))
        parts = [(part @ table.T).topk(k, dim=-1).indices.cpu() for part in gradients.split(64)]
        return self.ids[torch.cat(parts)] if parts else torch.empty(0, gradients.shape[1], k, dtype=torch.long)
