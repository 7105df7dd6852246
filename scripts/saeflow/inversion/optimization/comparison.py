"""All methods on the same features, with the same starts and budget, as tables."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saeflow.config.inversion import Optimization
from saeflow.inversion.optimization import baselines, epo, gcg, measures, soft
from saeflow.inversion.optimization.objective import Objective
from saeflow.inversion.optimization.vocabulary import Vocabulary
from saeflow.reproduce import child_seed

log = logging.getLogger(__name__)

_FRONTS_BEHIND = 16  # texts of the data set that robustness puts in front


@dataclass(frozen=True)
class Found:
    """What was found.

    Arguments:
        texts: a row per feature and method: text, its tokens with the feature's profile over them, score, ratio,
            cross-entropy, survived, robustness, diversity, evaluations. Score and ratio are of the text tokenised
            again; `soft` has no text. A feature of which no text of the data can be typed has no row `dataset`.
        fronts: a row per feature and point of EPO's front; `gcg` tells whether that front has a point no worse than
            GCG's text.
        curves: best score by evaluations, a row per method, feature and iteration.
        seconds: of wall time by method, and of the model alone under `model`; they stay out of the tables.
    """

    texts: pd.DataFrame
    fronts: pd.DataFrame
    curves: pd.DataFrame
    seconds: dict[str, float]


def compare(
    objective: Objective,
    vocabulary: Vocabulary,
    windows: Sequence[list[list[int]]],
    highest: Float[Tensor, " n_features"],
    names: Sequence[int],
    spec: Optimization,
    seed: int,
) -> Found:
    """Run every method.

    Arguments:
        objective: of the features.
        vocabulary: of the texts.
        windows: of the data set, for each feature, as `baselines.dataset_starts` takes them.
        highest: activation of each feature on the data set; 0 for one that never fires.
        names: numbers of the features, for the tables.
        spec: section `inversion.optimization`.
        seed: root of the draws.
    """
    began = time.perf_counter()
    crops = baselines.best_crops(objective, vocabulary, windows, spec.length, seed)
    seconds = {"dataset": time.perf_counter() - began}
    parts = []
    for length in sorted(set(crops.lengths), reverse=True):
        own = [i for i, chosen in enumerate(crops.lengths) if chosen == length]
        log.info("texts of %d tokens: %d of %d features", length, len(own), len(names))
        group = _Group(
            objective.of(torch.tensor(own)),
            vocabulary,
            [windows[i] for i in own],
            [crops.best[i] for i in own],
            crops.spent[own],
            highest[own],
            [names[i] for i in own],
            length,
        )
        part = _searched(group, spec, child_seed(seed, "length", length))
        seconds = {name: seconds.get(name, 0.0) + part.seconds.get(name, 0.0) for name in seconds | part.seconds}
        parts.append(part)
    texts, fronts, curves = (
        pd.concat([getattr(part, name) for part in parts], ignore_index=True) for name in ("texts", "fronts", "curves")
    )
    texts["robustness"] = _robustness(objective, vocabulary, texts, windows, names, spec)
    seconds["model"] = objective.cost.seconds
    return Found(texts, fronts, curves, seconds)


@dataclass(frozen=True)
class _Group:
    """Features whose texts have one length: `compare` has the rest, `crops` is the best text of the data set."""

    objective: Objective
    vocabulary: Vocabulary
    windows: list[list[list[int]]]
    crops: list[list[int]]
    crops_spent: Int[Tensor, " n_features"]
    highest: Float[Tensor, " n_features"]
    names: list[int]
    length: int


def _searched(group: _Group, spec: Optimization, seed: int) -> Found:
    objective, vocabulary, highest, names = group.objective, group.vocabulary, group.highest, group.names
    n, numbers, seconds = len(names), torch.arange(len(names)), {}
    began = time.perf_counter()

    def passed(method: str) -> None:
        nonlocal began
        seconds[method], began = time.perf_counter() - began, time.perf_counter()
        log.info("%s: %d features, %.0f s", method, n, seconds[method])

    starts = baselines.dataset_starts(group.windows, vocabulary, spec.restarts, group.length, seed)
    data = [baselines.aligned(own, group.length) for own in group.windows]
    at_start = objective.scores(starts.flatten(0, 1), numbers.repeat_interleave(spec.restarts)).view(n, -1)
    sequences: dict[str, list[list[int]]] = {"dataset": group.crops}
    spent = {"dataset": group.crops_spent + spec.restarts}
    passed("dataset")
    random = baselines.random_search(objective, vocabulary, group.length, spec.evaluations, seed)
    sequences["random"], spent["random"] = random.tokens.tolist(), torch.full((n,), random.spent)
    passed("random")
    gentle = soft.SoftSettings(spec.soft_steps, spec.soft_rate, spec.soft_constraint)
    softly = soft.optimise(objective, starts, vocabulary.ids, gentle)
    best_soft = softly.embedded[numbers, softly.scores.argmax(1)]
    sequences["soft_projected"] = soft.project(best_soft, objective.embeddings, vocabulary.ids).tolist()
    spent["soft_projected"] = torch.full((n,), 3 * len(softly.curve) * spec.restarts)
    passed("soft")
    # What the choice of length and start cost is part of the budget.
    left = spec.evaluations - int(spent["dataset"].max())
    greedy = gcg.search(objective, vocabulary, starts, data, gcg.GCGSettings(left, spec.width, top_k=spec.top_k), seed)
    sequences["gcg"], spent["gcg"] = greedy.best.tolist(), greedy.spent + spent["dataset"]
    passed("gcg")
    scales = torch.where(highest > 0, highest, at_start.abs().amax(1).clamp(min=1e-6))
    if spec.epo_start == "gcg":
        starts, before, left = torch.cat([greedy.tokens, starts], 1), spent["gcg"], spec.evaluations
    else:
        before = spent["dataset"]
    evolving = epo.EPOSettings(left, spec.population, width=spec.width, top_k=spec.top_k // 2 or 1)
    evolved = epo.evolve(objective, vocabulary, starts, data, scales, evolving, seed)
    sequences["epo"], spent["epo"] = [f.tokens[-1].tolist() for f in evolved.fronts], evolved.spent + before
    passed("epo")
    rows = [row for method in sequences for row in _rows(group, method, sequences[method], spent[method])]
    for row in rows:
        if row["method"] == "gcg":
            i = names.index(row["feature"])
            row["diversity"] = measures.diversity(greedy.tokens[i], greedy.scores[i])
    tops = softly.scores.amax(1).tolist()
    rows += [
        {
            "feature": names[i],
            "method": "soft",
            "score": top,
            "ratio": top / float(highest[i]) if highest[i] > 0 else None,
            "evaluations": int(spent["soft_projected"][i]),
        }
        for i, top in enumerate(tops)
    ]
    texts = pd.DataFrame(rows)
    curves = [("gcg", i, evaluations + int(spent["dataset"][i]), score) for i, evaluations, score in greedy.curve] + [
        ("epo", i, evaluations + int(before[i]), score) for i, evaluations, score in evolved.curve
    ]
    curves += [
        ("soft", i, 3 * (step + 1) * spec.restarts, float(score))
        for step, scores in enumerate(softly.curve)
        for i, score in enumerate(scores)
    ]
    table = pd.DataFrame(curves, columns=["method", "feature", "evaluations", "score"])
    table["ratio"] = table["score"] / highest.numpy()[table["feature"]].clip(min=1e-9)
    table["feature"] = [names[i] for i in table["feature"]]
    return Found(texts, _fronts(evolved, texts, vocabulary, names, highest), table, seconds)


def _rows(group: _Group, method: str, sequences: list[list[int]], spent: Tensor) -> list[dict]:
    """Of the table of texts; none for a feature without a sequence."""
    numbers = [i for i, sequence in enumerate(sequences) if sequence]
    found = [sequences[i] for i in numbers]
    measured = measures.measure(group.objective, group.vocabulary, found, numbers, group.highest)
    return [
        {
            "feature": group.names[i],
            "method": method,
            "text": one.text,
            "token_ids": one.token_ids,
            "tokens": one.tokens,
            "profile": one.profile,
            "survived": one.survived,
            "score": one.score,
            "ratio": one.ratio,
            "cross_entropy": one.cross_entropy,
            "diversity": None,
            "evaluations": int(spent[i]),
        }
        for i, one in zip(numbers, measured, strict=True)
    ]


def _fronts(
    evolved: epo.EPOResult, texts: pd.DataFrame, vocabulary: Vocabulary, names: Sequence[int], highest: Tensor
) -> pd.DataFrame:
    greedy = texts[texts["method"] == "gcg"].set_index("feature")
    rows = []
    for i, front in enumerate(evolved.fronts):
        score, loss = greedy.loc[names[i], ["score", "cross_entropy"]]
        beaten = front.dominates(score - 1e-4 * abs(score), loss + 1e-4)
        for tokens, value, own in zip(front.tokens.tolist(), front.scores, front.losses, strict=True):
            ratio = float(value / highest[i]) if highest[i] > 0 else None
            rows.append(
                {
                    "feature": names[i],
                    "text": vocabulary.text(tokens),
                    "score": float(value),
                    "ratio": ratio,
                    "cross_entropy": float(own),
                    "gcg": beaten,
                }
            )
    return pd.DataFrame(rows)


def _robustness(
    objective: Objective,
    vocabulary: Vocabulary,
    texts: pd.DataFrame,
    windows: Sequence[list[list[int]]],
    names: Sequence[int],
    spec: Optimization,
) -> list[float | None]:
    """Of GCG's and EPO's texts, behind windows of other features."""
    others = [window[-spec.length :] for own in windows for window in own[:2] if len(window) >= spec.length]
    found: list[float | None] = [None] * len(texts)
    if not isinstance(spec.position, str) or len(others) < 2:
        return found
    contexts = torch.tensor(others[:_FRONTS_BEHIND])
    for row, (method, name, ids) in enumerate(texts[["method", "feature", "token_ids"]].itertuples(index=False)):
        if method in ("gcg", "epo") and len(ids):
            own = torch.tensor([names.index(name)])
            value = float(measures.robustness(objective, torch.tensor([ids]), own, contexts)[0])
            found[row] = None if value != value else value
    return found
