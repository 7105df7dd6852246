"""What the feature explorer shows of an SAE of a language model: contexts, tokens, logits."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd

from saeflow.publish.site.features import CHUNK

FACTS = ["density", "mean_activation", "max_activation", "decoder_norm"]
TOP = 8
"""Contexts of one page, at most."""
SAID = 4
"""Tokens that stand for a feature in the explorer."""


@dataclass(frozen=True)
class TextFeatures:
    """Features of one SAE of a language model, as `analyze_features` writes them.

    Arguments:
        table: a row per latent.
        contexts: a row per latent and context, the latent's strongest first.
        summary: which SAE it is.
        concepts: scores of the features that tell concepts apart best; empty if none were tested.
        inverted: `texts` and `explanations` of the features whose inputs were searched for; without what did not run.
    """

    kind = "text"
    table: pd.DataFrame
    contexts: pd.DataFrame
    summary: Mapping[str, Any]
    concepts: pd.DataFrame = field(default_factory=pd.DataFrame)
    inverted: Mapping[str, pd.DataFrame] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.table)

    @property
    def name(self) -> str:
        return "/".join(self.summary[key] for key in ("model", "hook_point", "variant"))

    def index(self) -> dict[str, list[Any]]:
        t = self.table
        return {
            "density": t.density.tolist(),
            "max": t.max_activation.tolist(),
            "score": [None] * len(t),
            "dead": t.dead.astype(int).tolist(),
            "says": self._said,
        }

    def pages(self) -> Iterator[dict[str, Any]]:
        # Tokens of a vocabulary of whole words do not carry the space in front of them.
        spaced = any(token.startswith(" ") for tokens in self.contexts.tokens for token in tokens)
        for start in range(0, len(self), CHUNK):
            pages = [self._page(i) for i in range(start, min(start + CHUNK, len(self)))]
            yield {"spaced": spaced, "facts": FACTS, "features": pages}

    @cached_property
    def _top(self) -> dict[int, pd.DataFrame]:
        ranked = self.contexts.sort_values(["feature", "rank"], kind="stable")
        return {int(feature): rows.head(TOP) for feature, rows in ranked.groupby("feature")}

    @cached_property
    def _said(self) -> list[str]:
        return [self._says(i) for i in range(len(self))]

    def _says(self, i: int) -> str:
        """The tokens that carry most of its activation in its strongest contexts, and those that it raises."""
        if i not in self._top:
            return "fires on no text"
        carried: dict[str, float] = {}
        for row in self._top[i].itertuples():
            for token, value in zip(row.tokens, row.activations, strict=True):
                if value > 0:
                    carried[token] = carried.get(token, 0.0) + float(value)
        tokens = sorted(carried, key=lambda token: (-carried[token], token))[:SAID]
        raised = list(self.table.top_tokens[i])[:SAID]
        return f"on {_listed(tokens)}" + (f"; raises {_listed(raised)}" if raised else "")

    def _page(self, i: int) -> dict[str, Any]:
        row = self.table.iloc[i]
        shown = self._top[i].itertuples() if i in self._top else ()
        return {
            "facts": [row[name] for name in FACTS],
            "dead": bool(row.dead),
            "says": self._said[i],
            "top": [
                {
                    "tokens": list(one.tokens),
                    "values": one.activations,
                    "value": one.activation,
                    "document": one.document,
                }
                for one in shown
            ],
            "histogram": {"counts": row.histogram, "edges": row.bin_edges},
            "raises": [row.top_tokens, row.top_logits],
            "lowers": [row.bottom_tokens, row.bottom_logits],
            "neighbours": list(zip(row.neighbours, row.neighbour_coactivation, strict=True)),
            **self._tested(i),
        }

    def _tested(self, i: int) -> dict[str, Any]:
        """What concept tests and inversion say of a feature, where they looked at it."""
        found: dict[str, Any] = {}
        if len(own := _of(self.concepts, i)):
            found["concepts"] = own[["concept", "rank", "auroc", "selectivity"]].to_numpy().tolist()
        if len(own := _of(self.inverted.get("texts"), i)):
            own = own[own["method"] != "soft"].dropna(subset=["ratio"]).sort_values("ratio", ascending=False)
            columns = ["method", "text", "ratio", "cross_entropy", "tokens", "profile"]
            found["found"] = [list(row) for row in own[columns].itertuples(index=False)]
        if len(own := _of(self.inverted.get("explanations"), i)):
            found["explanation"] = own.iloc[0][["explanation", "detection", "top_token_detection"]].tolist()
        return found


def _of(table: pd.DataFrame | None, feature: int) -> pd.DataFrame:
    """Rows of a feature; none of a table that is not there."""
    return pd.DataFrame() if table is None or table.empty else table[table["feature"] == feature]


def _listed(tokens: list[str]) -> str:
    """Tokens in quotes: blanks inside are theirs."""
    return ", ".join(map(repr, tokens))
