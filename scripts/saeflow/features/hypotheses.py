"""One sentence per latent, chosen on training rows and scored on unseen ones.

A hypothesis is a yes/no rule over what is known of a row: "fires on 4 and 9", "fires on all but 1", "fires where the
upper left is bright", "fires on 4 where the upper left is bright". It predicts whether the latent fires. Rules are
chosen by AUROC on training rows, and scored on test rows beside what the same rule scores when the rows are shuffled.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saeflow.features.shuffles import shuffled_hits
from saeflow.sae.codes import Codes

KINDS = ("dead", "rare", "none", "labels", "all but labels", "property", "label and property")


@dataclass(frozen=True)
class Evidence:
    """Firing and total row counts by label, property and the property's level: all that rules are made of."""

    active: Int[Tensor, "d_sae labels properties levels"]
    total: Int[Tensor, "labels properties levels"]

    @property
    def n_active(self) -> Int[Tensor, " d_sae"]:
        return self.active[:, :, 0].sum((1, 2))

    @property
    def n_rows(self) -> int:
        return int(self.total[:, 0].sum())


@dataclass(frozen=True)
class Rules:
    """Per latent: fires iff the row's label is in `labels` and low <= level of `property` < high."""

    kind: list[str]
    labels: Bool[Tensor, "d_sae labels"]
    property: Int[Tensor, " d_sae"]
    low: Int[Tensor, " d_sae"]
    high: Int[Tensor, " d_sae"]


@dataclass(frozen=True)
class Scores:
    """Of yes/no predictions on rows that the rules were not chosen on; NaN for latents that fire on none or on all."""

    auroc: Float[Tensor, " d_sae"]
    """(recall + specificity) / 2: the AUROC of a yes/no prediction is its balanced accuracy. Chance is 0.5."""
    precision: Float[Tensor, " d_sae"]
    recall: Float[Tensor, " d_sae"]
    average_precision: Float[Tensor, " d_sae"]
    """precision * recall + base_rate * (1 - recall), the area under the two-step curve. Chance is `base_rate`."""
    base_rate: Float[Tensor, " d_sae"]
    """Share of the rows on which the latent fires."""
    auroc_null: Float[Tensor, " d_sae"]
    """The same rule on one random shuffle of the rows against the latent; the mean over shuffles is 0.5."""
    auroc_null_p95: Float[Tensor, " d_sae"]
    """95th percentile over all shuffles."""
    p_value: Float[Tensor, " d_sae"]
    """Probability that shuffled rows score at least as high (Fisher's exact test, one-sided)."""


@dataclass(frozen=True)
class Hypotheses:
    rules: Rules
    text: list[str]
    auroc_train: Float[Tensor, " d_sae"]
    scores: Scores
    """On the test rows."""


def evidence(
    codes: Codes,
    labels: Int[Tensor, " rows"] | None,
    levels: Int[Tensor, "rows properties"] | None,
    n_labels: int = 1,
    n_levels: int = 10,
) -> Evidence:
    """Counts of a split; without labels (or properties) there is one label (or property) that says nothing.

    They come back on the CPU: they are small, and CUDA has no deterministic cumulative sum.
    """
    device, rows, latents = codes.values.device, codes.rows, codes.indices.long()
    labels = torch.zeros(len(codes), dtype=torch.int64, device=device) if labels is None else labels
    levels = torch.zeros(len(codes), 1, dtype=torch.int64, device=device) if levels is None else levels
    for name, given in (("labels", labels), ("levels", levels)):
        if len(given) != len(codes):
            raise ValueError(f"{name}: {len(given)} rows, the codes have {len(codes)}")
    cells = latents * n_labels + labels[rows]
    size = codes.d_sae * n_labels * n_levels
    active = [
        torch.bincount(cells * n_levels + level[rows], minlength=size).view(-1, n_labels, n_levels)
        for level in levels.T
    ]
    total = [torch.bincount(labels * n_levels + level, minlength=n_labels * n_levels) for level in levels.T]
    total = [t.view(n_labels, n_levels) for t in total]
    return Evidence(torch.stack(active, 2).cpu(), torch.stack(total, 1).cpu())


def choose(
    train: Evidence, *, max_labels: int = 3, extra_term_gain: float = 0.02
) -> tuple[Rules, Float[Tensor, " d_sae"]]:
    """Rule of the highest AUROC per latent, and that AUROC; ties go to the rule listed first in KINDS.

    Arguments:
        max_labels: labels in a rule, at most.
        extra_term_gain: AUROC that every further label or condition has to gain.
    """
    n_latents, n_labels, n_properties, n_levels = train.active.shape
    device = train.active.device
    n_active = train.n_active.double().clamp(min=1)
    n_silent = (train.n_rows - train.n_active).double().clamp(min=1)
    # Difference of the rates at which a cell holds firing and silent rows: a rule's AUROC is (1 + sum of cells) / 2.
    shape = (-1, 1, 1, 1)
    gain = train.active / n_active.view(shape) - (train.total - train.active) / n_silent.view(shape)

    by_label, order = gain[:, :, 0].sum(2).sort(dim=1, descending=True, stable=True)
    sizes = torch.arange(1, min(max_labels, n_labels - 1) + 1, device=device)
    inside = by_label.cumsum(1)[:, sizes - 1]
    outside = -by_label.flip(1).cumsum(1)[:, sizes - 1]
    below = gain.cumsum(3)[..., :-1]
    above = gain.sum(3, keepdim=True) - below
    one = torch.stack([above.sum(1), below.sum(1)], 1).flatten(1)
    both = torch.stack([above, below], 1).flatten(1) if n_labels > 1 else gain.new_zeros(n_latents, 0)
    penalty = 2 * extra_term_gain
    candidates = [inside - penalty * (sizes - 1), outside - penalty * (sizes - 1), one, both - penalty]
    starts = torch.tensor([0, *(c.shape[1] for c in candidates)]).cumsum(0).tolist()
    everything = torch.cat(candidates, 1)
    if not everything.shape[1]:
        raise ValueError("hypotheses: neither labels nor properties to make a rule of")
    # argmax leaves open which of equal values it names; the sort does not. Equal rules round unlike.
    best = everything.round(decimals=9).sort(dim=1, descending=True, stable=True).indices[:, 0].tolist()

    kind: list[str] = []
    labels = torch.ones(n_latents, n_labels, dtype=torch.bool, device=device)
    which = torch.zeros(n_latents, dtype=torch.int64)
    low, high = torch.zeros_like(which), torch.full_like(which, n_levels)
    for i, index in enumerate(best):
        section = sum(index >= start for start in starts[1:-1])
        kind.append(KINDS[3 + section])
        place = index - starts[section]
        if section == 0:
            labels[i] = False
            labels[i, order[i, : place + 1]] = True
        elif section == 1:
            labels[i, order[i, -place - 1 :]] = False
        else:
            rest, edge = divmod(place, n_levels - 1)
            rest, which[i] = divmod(rest, n_properties)
            side, label = divmod(rest, n_labels) if section == 3 else (rest, None)
            if label is not None:
                labels[i] = False
                labels[i, label] = True
            (low if side == 0 else high)[i] = edge + 1
    rules = Rules(kind, labels, which.to(device), low.to(device), high.to(device))
    return rules, (1 + _select(rules, gain)) / 2


def score(rules: Rules, test: Evidence, seed: int) -> Scores:
    """How well each rule predicts on which test rows its latent fires.

    Arguments:
        seed: of the one draw from the null.
    """
    n, n_active = test.n_rows, test.n_active.double()
    hits = _select(rules, test.active.double())
    predicted = _select(rules, test.total.double().expand_as(test.active))
    recall = hits / n_active
    precision = torch.where(predicted > 0, hits / predicted.clamp(min=1), 0)
    base = n_active / n
    p_value, hits_p95 = shuffled_hits(n, n_active.long(), predicted.long(), hits.long(), 0.95)
    good, named = (v.cpu().numpy().astype(np.int64) for v in (n_active, predicted))
    hits_null = torch.from_numpy(np.random.default_rng(seed).hypergeometric(good, n - good, named)).to(hits)
    defined = (n_active > 0) & (n_active < n)

    def where(v: Tensor) -> Tensor:
        return torch.where(defined, v, torch.nan).float()

    def auroc(hits: Tensor) -> Tensor:
        return where((1 + hits / n_active - (predicted - hits) / (n - n_active)) / 2)

    return Scores(
        auroc=auroc(hits),
        precision=where(precision),
        recall=where(recall),
        average_precision=where(precision * recall + base * (1 - recall)),
        base_rate=base.float(),
        auroc_null=auroc(hits_null),
        auroc_null_p95=auroc(hits_p95),
        p_value=where(p_value),
    )


def hypothesize(
    train: Evidence,
    test: Evidence,
    *,
    seed: int,
    label_names: Sequence[str] = (),
    words: tuple[Sequence[str], Sequence[str]] = ((), ()),
    least: float = 0.7,
    min_active: int = 10,
    max_labels: int = 3,
) -> Hypotheses:
    """Choose on one split, score on the other, and say it in words.

    Arguments:
        seed: of the null draw.
        label_names: what to call the labels; their numbers if not given.
        words: for each property, what a high and what a low value means (`Descriptors.high`, `.low`).
        least: training AUROC below which a latent gets "no simple hypothesis"; its best rule is still
            scored.
        min_active: training rows that a latent has to fire on for a hypothesis; its best rule is still scored.
    """
    rules, accuracy = choose(train, max_labels=max_labels)
    names = list(label_names) or [str(i) for i in range(train.active.shape[1])]
    level = torch.arange(train.active.shape[3], device=train.total.device)
    inside = (level >= rules.low[:, None]) & (level < rules.high[:, None])
    shares = ((train.total.sum(0)[rules.property] * inside).sum(1) / train.n_rows).tolist()
    texts, kinds = [], []
    for i, (fires, good) in enumerate(zip(train.n_active.tolist(), accuracy.tolist(), strict=True)):
        sentence = _sentence(rules, i, names, words, shares[i])
        if not fires:
            kinds.append("dead")
            texts.append("never fires on the training split")
        elif fires == train.n_rows:
            kinds.append("none")
            texts.append("always fires")
        elif fires < min_active:
            kinds.append("rare")
            texts.append(f"too rare for a hypothesis ({fires} row{'s' * (fires > 1)}); closest: {sentence}")
        elif good < least:
            kinds.append("none")
            texts.append(f"no simple hypothesis; closest: {sentence}")
        else:
            kinds.append(rules.kind[i])
            texts.append(sentence)
    rules = Rules(kinds, rules.labels, rules.property, rules.low, rules.high)
    fires = (train.n_active > 0) & (train.n_active < train.n_rows)
    scores = score(rules, test, seed)
    blank = {name: torch.where(fires, value, torch.nan) for name, value in vars(scores).items() if name != "base_rate"}
    return Hypotheses(
        rules, texts, torch.where(fires, accuracy, torch.nan).float(), Scores(**blank, base_rate=scores.base_rate)
    )


def _select(rules: Rules, cells: Float[Tensor, "d_sae labels properties levels"]) -> Float[Tensor, " d_sae"]:
    """Sum over the cells in which each latent's rule says yes."""
    own = cells[torch.arange(len(cells), device=cells.device), :, rules.property]
    level = torch.arange(cells.shape[3], device=cells.device)
    inside = (level >= rules.low[:, None]) & (level < rules.high[:, None])
    return (own * rules.labels[:, :, None] * inside[:, None]).sum((1, 2))


def _sentence(
    rules: Rules, i: int, names: Sequence[str], words: tuple[Sequence[str], Sequence[str]], share: float
) -> str:
    """A rule in words; `share` is that of the training rows at which the rule's property is as it says."""
    kind, parts = rules.kind[i], ["fires"]
    if "label" in kind:
        out = kind == "all but labels"
        chosen = [name for name, yes in zip(names, rules.labels[i].tolist(), strict=True) if yes != out]
        listed = " and ".join(filter(None, [", ".join(chosen[:-1]), chosen[-1]]))
        parts.append(f"on all but {listed}" if out else f"on {listed}")
    if "property" in kind:
        high = int(rules.low[i]) > 0
        phrase = words[0 if high else 1][int(rules.property[i])]
        parts.append(f"where {phrase} ({'top' if high else 'lowest'} {100 * share:.0f} %)")
    return " ".join(parts)
