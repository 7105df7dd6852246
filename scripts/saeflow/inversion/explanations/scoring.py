"""How well an explanation tells where a latent fires, on text held out: detection and fuzzing.

Paulo et al. 2024, "Automatically interpreting millions of features in large language models": detection asks which
windows of text a latent fires in, fuzzing which of the marked tokens it fires on.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int
from sklearn.metrics import roc_auc_score

from saeflow.inversion.explanations.readings import NONE, PLACES, Readings
from saeflow.inversion.explanations.rules import Rule
from saeflow.reproduce import child_seed


@dataclass(frozen=True)
class Trial:
    """Windows that an explanation is tested on.

    Arguments:
        positives: rows of windows in which the latent fires, evenly from all quantiles of their peaks.
        random: rows of windows in which it does not.
        hard: rows of windows in which it does not either, though its pre-activation comes nearest.
    """

    positives: Int[np.ndarray, "n_positives length"]
    random: Int[np.ndarray, "n_random length"]
    hard: Int[np.ndarray, "n_hard length"]


@dataclass(frozen=True)
class Score:
    """What an explanation reaches; None where the text has no windows of a kind.

    Arguments:
        detection: AUROC of windows that fire against all that do not.
        detection_random, detection_hard: against one kind of those.
        balanced_accuracy: mean of the shares of both that the rule with its threshold tells right.
        fuzzing: AUROC of marks on tokens that fire against marks on tokens of the same windows that do not.
        n_positives, n_negatives: windows.
    """

    detection: float | None
    detection_random: float | None
    detection_hard: float | None
    balanced_accuracy: float | None
    fuzzing: float | None
    n_positives: int
    n_negatives: int


def trial(
    readings: Readings, feature: int, *, length: int, n: int, quantiles: int, seed: int, hard_share: float = 0.1
) -> Trial:
    """Draw windows.

    Arguments:
        readings: of the text.
        feature: column of the activations.
        length: tokens of a window.
        n: windows that fire, and windows that do not (half of them hard), at most.
        quantiles: of the peaks of those that fire, from each of which as many are drawn.
        seed: root of the draws.
        hard_share: of the windows that do not fire, those with the highest pre-activation, which hard ones are from.
    """
    rng = np.random.default_rng(child_seed(seed, "trial", feature))
    rows = readings.windows(length)
    peaks = readings.activations[:, feature][rows].max(1, initial=0)
    near = readings.scores[:, feature][rows].max(1, initial=-np.inf)
    firing, silent = np.flatnonzero(peaks > 0), np.flatnonzero(peaks <= 0)
    strata = np.array_split(firing[np.argsort(peaks[firing], kind="stable")], quantiles)
    positives = np.concatenate([rng.permutation(s)[: -(-n // quantiles)] for s in strata]) if len(firing) else firing
    order = silent[np.argsort(-near[silent], kind="stable")]
    hard = rng.permutation(order[: max(n // 2, int(hard_share * len(order)))])[: min(n // 2, len(order) // 2)]
    rest = np.setdiff1d(silent, hard)
    return Trial(rows[np.sort(positives)], rows[np.sort(rng.permutation(rest)[: n - n // 2])], rows[np.sort(hard)])


def windows_scored(rule: Rule, readings: Readings, rows: Int[np.ndarray, "n length"]) -> Float[np.ndarray, " n"]:
    """The chance that a latent fires on any token of each window; tokens before a window are not seen."""
    places = readings.places[rows]
    for k in range(1, PLACES):
        places[:, :k, k] = NONE
    return 1 - (1 - rule.chances(places)).prod(1)


def with_threshold(rule: Rule, readings: Readings, trial: Trial) -> Rule:
    """The rule with the threshold that tells windows of training text apart best."""
    yes = windows_scored(rule, readings, trial.positives)
    no = windows_scored(rule, readings, np.concatenate([trial.random, trial.hard]))
    if not len(yes) or not len(no):
        return rule
    values = np.unique(np.concatenate([yes, no]))
    cuts = np.append((values[:-1] + values[1:]) / 2, values[-1] + 1e-9)
    balanced = [((yes > cut).mean() + (no <= cut).mean()) / 2 for cut in cuts]
    return replace(rule, threshold=float(cuts[int(np.argmax(balanced))]))


def score(rule: Rule, readings: Readings, trial: Trial, feature: int, seed: int) -> Score:
    """Test a rule on windows of text that it was not made from."""
    yes, random, hard = (windows_scored(rule, readings, rows) for rows in (trial.positives, trial.random, trial.hard))
    no = np.concatenate([random, hard])
    right = ((yes > rule.threshold).mean() + (no <= rule.threshold).mean()) / 2 if len(yes) and len(no) else None
    return Score(
        _auroc(yes, no),
        _auroc(yes, random),
        _auroc(yes, hard),
        None if right is None else float(right),
        _fuzzing(rule, readings, trial.positives, feature, seed),
        len(yes),
        len(no),
    )


def _fuzzing(rule: Rule, readings: Readings, rows: np.ndarray, feature: int, seed: int) -> float | None:
    """Per window two marks of equally many tokens: those on which the latent fires, and others."""
    rng = np.random.default_rng(child_seed(seed, "fuzzing", feature))
    yes, no = [], []
    for window in rows:
        chances = rule.chances(readings.places[window])
        fires: Bool[np.ndarray, " length"] = readings.activations[window, feature] > 0
        n = min(fires.sum(), (~fires).sum())
        if n:
            yes.append(chances[fires].mean())
            no.append(chances[rng.permutation(np.flatnonzero(~fires))[:n]].mean())
    return _auroc(np.array(yes), np.array(no))


def _auroc(yes: np.ndarray, no: np.ndarray) -> float | None:
    if not len(yes) or not len(no):
        return None
    return float(roc_auc_score(np.repeat([1, 0], [len(yes), len(no)]), np.concatenate([yes, no])))


def interval(
    differences: Float[np.ndarray, " n"], seed: int, resamples: int = 2000, level: float = 0.95
) -> tuple[float, float, float]:
    """Mean over latents and its bootstrap interval (percentiles)."""
    rng = np.random.default_rng(child_seed(seed, "interval"))
    means = differences[rng.integers(len(differences), size=(resamples, len(differences)))].mean(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(differences.mean()), float(low), float(high)
