"""All methods on the same features, with the same starts and budget, as tables."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from saeflow.config_inversion import Optimization
from saeflow.inversion.optimization import baselines, epo, gcg, measures, soft
from saeflow.inversion.optimization.objective import Objective
from saeflow.inversion.optimization.vocabulary import Vocabulary

log = logging.getLogger(__name__)

_FRONTS_BEHIND = 16  # texts of the data set that robustness puts in front


@dataclass(frozen=True)
class Found:
    """What was found.

    Arguments:
        texts: a row per feature and method: text, its tokens with the feature's profile over them, score, ratio,
            cross-entropy, survived, robustness, diversity, evaluations. Score and ratio are of the text tokenised
            again; `soft` has no text.
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
    n, numbers, seconds = len(names), torch.arange(len(names)), {}
    starts = baselines.dataset_starts(windows, vocabulary, spec.restarts, spec.length, seed)
    began = time.perf_counter()

    def passed(method: str) -> None:
        nonlocal began
        seconds[method], began = time.perf_counter() - began, time.perf_counter()
        log.info("%s: %d features, %.0f s", method, n, seconds[method])

    at_start = objective.scores(starts.flatten(0, 1), numbers.repeat_interleave(spec.restarts)).view(n, -1)
    sequences = {"dataset": starts[numbers, at_start.argmax(1)]}
    spent = {"dataset": torch.full((n,), spec.restarts)}
    passed("dataset")
    random = baselines.random_search(objective, vocabulary, spec.length, spec.evaluations, seed)
    sequences["random"], spent["random"] = random.tokens, torch.full((n,), random.spent)
    passed("random")
    gentle = soft.SoftSettings(spec.soft_steps, spec.soft_rate, spec.soft_constraint)
    softly = soft.optimise(objective, starts, vocabulary.ids, gentle)
    best_soft = softly.embedded[numbers, softly.scores.argmax(1)]
    sequences["soft_projected"] = soft.project(best_soft, objective.embeddings, vocabulary.ids)
    spent["soft_projected"] = torch.full((n,), 3 * len(softly.curve) * spec.restarts)
    passed("soft")
    greedy = gcg.search(objective, vocabulary, starts, gcg.GCGSettings(spec.evaluations, spec.width, spec.top_k), seed)
    sequences["gcg"], spent["gcg"] = greedy.best, greedy.spent
    passed("gcg")
    scales = torch.where(highest > 0, highest, at_start.abs().amax(1).clamp(min=1e-6))
    evolving = epo.EPOSettings(spec.evaluations, spec.population, width=spec.width, top_k=spec.top_k // 2 or 1)
    first, before = (
        (greedy.tokens, greedy.spent) if spec.epo_start == "gcg" else (starts, torch.zeros_like(greedy.spent))
    )
    evolved = epo.evolve(objective, vocabulary, first, scales, evolving, seed)
    sequences["epo"], spent["epo"] = torch.stack([front.tokens[-1] for front in evolved.fronts]), evolved.spent + before
    passed("epo")
    rows = []
    for method, tokens in sequences.items():
        measured = measures.measure(objective, vocabulary, tokens.tolist(), numbers.tolist(), highest)
        for i, one in enumerate(measured):
            rows.append(
                {
                    "feature": names[i],
                    "method": method,
                    "text": one.text,
                    "token_ids": one.token_ids,
                    "tokens": one.tokens,
                    "profile": one.profile,
                    "survived": one.survived,
                    "score": one.score,
                    "ratio": one.ratio,
                    "cross_entropy": one.cross_entropy,
                    "diversity": measures.diversity(greedy.tokens[i], greedy.scores[i]) if method == "gcg" else None,
                    "evaluations": int(spent[method][i]),
                }
            )
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
    texts["robustness"] = _robustness(objective, vocabulary, texts, windows, names, spec)
    curves = [("gcg", *point) for point in greedy.curve] + [
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
    seconds["model"] = objective.cost.seconds
    return Found(texts, _fronts(evolved, texts, vocabulary, names, highest), table, seconds)


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
