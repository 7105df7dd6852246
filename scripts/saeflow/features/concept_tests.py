"""Which features tell the sentences of a concept from all others, and whether that is more than chance.

A feature is chosen on training sentences and scored on sentences held out. Beside it stand what it has to beat or to
approach: the best feature under shuffled labels, the best of as many features with random weights, the best coordinate
of the dense activations, and a linear probe. Random weights beat shuffled labels with ease, if there are many.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from saeflow.reproduce import child_seed

_COLUMNS = 4096  # features that are held dense at a time


class Verdict(NamedTuple):
    """One concept: means over the splits, and their sample standard deviation."""

    concept: str
    n: int
    """Sentences of the concept."""
    auroc: float
    """Of the feature chosen on the training sentences, on those held out."""
    auroc_std: float
    null_p95: float
    """95th percentile, over shuffled labels, of the same mean over splits."""
    p_value: float
    """Share of the shuffles that reach `auroc`, the observed labels counted as one of them."""
    control_auroc: float | None
    """The same choice among the features of the control, an SAE with random weights."""
    dense_auroc: float
    """Of the dense coordinate and sign chosen on the training sentences."""
    probe_auroc: float
    """Of a logistic regression on the standardised dense activations."""
    probe_auroc_std: float
    passed: bool
    """`auroc` exceeds `null_p95`."""
    learnt: bool | None
    """`auroc` exceeds `control_auroc`: training adds to what random directions say."""

    def sentence(self) -> str:
        """The verdict in words."""
        said = f"its best feature has AUROC {self.auroc:.2f} on held-out sentences, shuffled labels reach "
        said += f"{self.null_p95:.2f}, the best coordinate {self.dense_auroc:.2f}, a probe {self.probe_auroc:.2f}"
        said += "" if self.control_auroc is None else f", an SAE with random weights {self.control_auroc:.2f}"
        outcome = "FAILED" if not self.passed else "passed, as random weights do" if self.learnt is False else "passed"
        return f"{self.concept}: {outcome}: {said}"


def splits(labels: Int[np.ndarray, " n"], n_splits: int, seed: int) -> Bool[np.ndarray, "splits n"]:
    """Which sentences are for training in each split: half of each concept, drawn anew; the odd one is held out."""
    chosen = np.zeros((n_splits, len(labels)), bool)
    for split in range(n_splits):
        rng = np.random.default_rng(child_seed(seed, "split", split))
        for concept in np.unique(labels):
            rows = np.flatnonzero(labels == concept)
            chosen[split, rng.permutation(rows)[: len(rows) // 2]] = True
    return chosen


def ranks(scores: csr_array | Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Rank of each row within each column, 1 for the lowest; equal scores share the mean of their ranks."""
    columns = range(0, scores.shape[1], _COLUMNS)
    blocks = (scores[:, start : start + _COLUMNS] for start in columns)
    dense = (block.toarray() if isinstance(block, csr_array) else block for block in blocks)
    return np.concatenate([rankdata(block, axis=0).astype(np.float32) for block in dense], axis=1)


def aurocs(ranked: Float[np.ndarray, "n d"], positive: Bool[np.ndarray, "m n"]) -> Float[np.ndarray, "m d"]:
    """AUROC of every column for each of m labellings: (R - n1 (n1 + 1) / 2) / (n1 n0), R the ranks of the positives.

    Mann and Whitney 1947. 0.5 for a column that is constant.

    Raises:
        ValueError: a labelling without a positive or a negative row.
    """
    n1 = positive.sum(1, keepdims=True).astype(np.float64)
    n0 = positive.shape[1] - n1
    if not (n1 * n0).all():
        raise ValueError("AUROC needs rows of both kinds; a labelling has one kind only")
    # Sums of at most a few thousand half-integers: exact in single precision up to 2^23.
    return (positive.astype(np.float32) @ ranked - n1 * (n1 + 1) / 2) / (n1 * n0)


def evaluate(
    features: csr_array,
    dense: Float[np.ndarray, "n d_in"],
    labels: Int[np.ndarray, " n"],
    names: Sequence[str],
    *,
    control: csr_array | None = None,
    n_splits: int = 3,
    n_shuffles: int = 200,
    top: int = 5,
    seed: int = 0,
) -> tuple[list[Verdict], list[dict[str, Any]]]:
    """Test every concept.

    Arguments:
        features: score of every feature on every sentence, e.g. its highest activation over the tokens.
            Shape [n, d_sae].
        dense: activations of every sentence, e.g. their mean over the tokens.
        labels: concept of each sentence, as an index into `names`.
        control: scores as `features`, of an SAE with random weights.
        n_splits: draws of training and held-out halves; all means are over them.
        n_shuffles: shuffled labellings behind the null.
        top: features listed per concept.
        seed: root of the draws.
    Returns:
        a verdict per concept; and rows of the best features of each, chosen on the first split: `concept`, `rank` (by
        AUROC on its training sentences), `feature`, `auroc_train`, `auroc`, `selectivity` (AUROC less the feature's
        highest for another concept, held out) and what the verdict says.
    Raises:
        ValueError: rows that do not go together, or scores that are not numbers.
    """
    _check(features, control, dense, labels, names)
    chosen = splits(labels, n_splits, seed)
    positive = labels == np.arange(len(names))[:, None]
    shuffled = np.stack([labels[order] for order in _orders(len(labels), n_shuffles, seed)])
    found, null, coordinate, probe, random, rows = [], [], [], [], [], []
    for split, train in enumerate(chosen):
        here, there = (ranks(features[which]) for which in (train, ~train))
        on_train, held_out = aurocs(here, positive[:, train]), aurocs(there, positive[:, ~train])
        best = on_train.argmax(1)
        found.append(held_out[np.arange(len(names)), best])
        null.append([_best(here, there, shuffled == concept, train) for concept in range(len(names))])
        coordinate.append(_best_coordinate(dense, positive, train))
        if control is not None:
            random.append(_best(ranks(control[train]), ranks(control[~train]), positive, train))
        probe.append([_probe(dense, is_concept, train) for is_concept in positive])
        if split == 0:
            rows = list(_top(on_train, held_out, names, top))
    means, shuffles = np.mean(found, 0), np.mean(null, 0)
    limits = np.quantile(shuffles, 0.95, axis=1)
    controls = np.mean(random, 0).tolist() if random else [None] * len(names)
    verdicts = [
        Verdict(
            name,
            int(positive[i].sum()),
            float(means[i]),
            _deviation([values[i] for values in found]),
            float(limits[i]),
            float((1 + (shuffles[i] >= means[i]).sum()) / (1 + n_shuffles)),
            controls[i],
            float(np.mean(coordinate, 0)[i]),
            float(np.mean(probe, 0)[i]),
            _deviation([values[i] for values in probe]),
            bool(means[i] > limits[i]),
            None if controls[i] is None else bool(means[i] > controls[i]),
        )
        for i, name in enumerate(names)
    ]
    shared = ("null_p95", "control_auroc", "dense_auroc", "probe_auroc", "passed")
    beside = {verdict.concept: {key: getattr(verdict, key) for key in shared} for verdict in verdicts}
    return verdicts, [row | beside[row["concept"]] for row in rows]


def _best(
    here: Float[np.ndarray, "train d"],
    there: Float[np.ndarray, "held_out d"],
    positive: Bool[np.ndarray, "m n"],
    train: Bool[np.ndarray, " n"],
) -> Float[np.ndarray, " m"]:
    """Held-out AUROC of the column that is best on the training rows, for each of m labellings."""
    best = aurocs(here, positive[:, train]).argmax(1)
    held_out = positive[:, ~train]
    n1 = held_out.sum(1).astype(np.float64)
    sums = np.einsum("mn,nm->m", held_out.astype(np.float32), there[:, best])
    return (sums - n1 * (n1 + 1) / 2) / (n1 * (held_out.shape[1] - n1))


def _best_coordinate(
    dense: Float[np.ndarray, "n d_in"], positive: Bool[np.ndarray, "concepts n"], train: Bool[np.ndarray, " n"]
) -> Float[np.ndarray, " concepts"]:
    """Held-out AUROC of the coordinate, and of the sign, that is best on the training rows."""
    on_train, held_out = (aurocs(ranks(dense[which]), positive[:, which]) for which in (train, ~train))
    best = np.abs(on_train - 0.5).argmax(1)
    concepts = np.arange(len(positive))
    value = held_out[concepts, best]
    return np.where(on_train[concepts, best] < 0.5, 1 - value, value)


def _probe(
    dense: Float[np.ndarray, "n d_in"], positive: Bool[np.ndarray, " n"], train: Bool[np.ndarray, " n"]
) -> float:
    """Held-out AUROC of a linear probe; classes weigh the same."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000, class_weight="balanced"))
    model.fit(dense[train], positive[train])
    scores = model.decision_function(dense[~train])
    return float(aurocs(ranks(scores[:, None].astype(np.float64)), positive[None, ~train])[0, 0])


def _top(
    on_train: Float[np.ndarray, "concepts d"], held_out: Float[np.ndarray, "concepts d"], names: Sequence[str], top: int
) -> Iterator[dict[str, Any]]:
    for i, name in enumerate(names):
        others = np.delete(held_out, i, axis=0)
        for rank, feature in enumerate(np.argsort(-on_train[i], kind="stable")[:top], 1):
            yield {
                "concept": name,
                "rank": rank,
                "feature": int(feature),
                "auroc_train": float(on_train[i, feature]),
                "auroc": float(held_out[i, feature]),
                "selectivity": float(held_out[i, feature] - others[:, feature].max()),
            }


def _orders(n: int, n_shuffles: int, seed: int) -> Iterator[Int[np.ndarray, " n"]]:
    for shuffle in range(n_shuffles):
        yield np.random.default_rng(child_seed(seed, "shuffle", shuffle)).permutation(n)


def _deviation(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _check(
    features: csr_array, control: csr_array | None, dense: np.ndarray, labels: np.ndarray, names: Sequence[str]
) -> None:
    if control is not None and control.shape[0] != features.shape[0]:
        raise ValueError(f"concept tests: {control.shape[0]} rows of the control, {features.shape[0]} of features")
    if not features.shape[0] == len(dense) == len(labels):
        raise ValueError(
            f"concept tests: {features.shape[0]} rows of features, {len(dense)} of activations, {len(labels)} labels; "
            "expected one of each per sentence"
        )
    if sorted(np.unique(labels)) != list(range(len(names))):
        raise ValueError(f"concept tests: labels {np.unique(labels).tolist()}, expected each of 0 to {len(names) - 1}")
    for what, values in (("features", features.data), ("activations", dense)):
        if not np.isfinite(values).all():
            raise ValueError(
                f"concept tests: {what} hold {int((~np.isfinite(values)).sum())} values that are no number"
            )
