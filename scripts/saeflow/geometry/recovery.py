"""Whether an SAE's parents and children are a hierarchy's: matched on one split, measured on another.

Contexts have labels: the parent (child) concept that the model is about to name, -1 for none. Arrays hold one row per
context; `parents` and `values` are an SAE's K active parents, `children` the child chosen under each.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment


class Active(NamedTuple):
    """Codes of an SAE; a parent at 0 is not active."""

    parents: Int[np.ndarray, "n k"]
    values: Float[np.ndarray, "n k"]
    children: Int[np.ndarray, "n k"] | None

    def dense(self, n_parents: int) -> Float[np.ndarray, "n parents"]:
        """Activation of every parent."""
        z = np.zeros((len(self.parents), n_parents))
        np.put_along_axis(z, self.parents, self.values, axis=1)
        return z


def f1_scores(
    active: np.ndarray, labels: Int[np.ndarray, " n"], n_concepts: int
) -> Float[np.ndarray, "concepts latents"]:
    """F1 = 2 |both| / (|label = p| + |latent active|) of every latent as a detector of every concept."""
    is_label = (labels == np.arange(n_concepts)[:, None]).astype(float)
    both = is_label @ active
    total = is_label.sum(1)[:, None] + active.sum(0)[None]
    return np.divide(2 * both, total, out=np.zeros_like(both), where=total > 0)


def match(scores: Float[np.ndarray, "concepts latents"]) -> Int[np.ndarray, " concepts"]:
    """j(p): the latent of each concept, all different, with the largest sum of scores (Hungarian algorithm).

    Raises:
        ValueError: fewer latents than concepts.
    """
    if scores.shape[1] < scores.shape[0]:
        raise ValueError(f"{scores.shape[1]} latents cannot be matched to {scores.shape[0]} concepts")
    return linear_sum_assignment(-scores)[1]


class Recovery(NamedTuple):
    """Per concept; NaN where the split has no context of it."""

    purity: Float[np.ndarray, " concepts"]
    """P(label = p | j(p) active): contexts of p among those on which j(p) is active; 0 if it never is."""
    recall: Float[np.ndarray, " concepts"]
    """P(j(p) active | label = p)."""
    elsewhere: Float[np.ndarray, " concepts"]
    """Activation of matched parents other than j(p), summed over contexts with label p."""
    total: Float[np.ndarray, " concepts"]
    """Activation of all matched parents, summed over the same contexts."""
    leak_rate: float
    """Share of pairs (context with a label p, q other than p) in which j(q) is active."""

    @property
    def leak_mass(self) -> float:
        """Sum of `elsewhere` over sum of `total`."""
        total = float(self.total.sum())
        return float(self.elsewhere.sum()) / total if total > 0 else float("nan")


def recovery(z: Float[np.ndarray, "n latents"], labels: Int[np.ndarray, " n"], matched: np.ndarray) -> Recovery:
    """Purity and leakage of matched parents."""
    n_concepts = len(matched)
    own = z[:, matched]
    active = own > 0
    is_label = labels[:, None] == np.arange(n_concepts)
    both, fired, seen = (active & is_label).sum(0), active.sum(0), is_label.sum(0)
    there = np.where(seen > 0, 1.0, np.nan)
    labelled = labels >= 0
    total = is_label.T.astype(float) @ own.sum(1)
    on_own = (own * is_label).sum(0)
    others = active[labelled].sum() - both.sum()
    return Recovery(
        purity=there * both / np.maximum(fired, 1),
        recall=there * both / np.maximum(seen, 1),
        elsewhere=total - on_own,
        total=total,
        leak_rate=float(others / max(1, labelled.sum() * (n_concepts - 1))),
    )


def child_matches(
    codes: Active,
    child_labels: Int[np.ndarray, " n"],
    parent_of: Int[np.ndarray, " c"],
    matched: np.ndarray,
    n_slots: int,
) -> Int[np.ndarray, " c"]:
    """The child slot of each child concept under its parent's j(p), by F1, all different; -1 if slots run out."""
    slots = np.full(len(parent_of), -1)
    for p, j in enumerate(matched):
        own = np.flatnonzero(parent_of == p)
        chosen = _slot_of(codes, j)
        onehot = chosen[:, None] == np.arange(n_slots)
        local = np.full(len(child_labels), -1)
        for i, c in enumerate(own):
            local[child_labels == c] = i
        rows, columns = linear_sum_assignment(-f1_scores(onehot.astype(float), local, len(own)))
        slots[own[rows]] = columns
    return slots


def child_purity(
    codes: Active,
    child_labels: Int[np.ndarray, " n"],
    parent_of: Int[np.ndarray, " c"],
    matched: np.ndarray,
    slots: np.ndarray,
) -> Float[np.ndarray, " c"]:
    """P(label = c | j(p) active with c's slot, label under p), for each child c of p.

    0 if that never happens, NaN where the split has no context of c.
    """
    found = np.full(len(parent_of), np.nan)
    for c, p in enumerate(parent_of):
        if not (child_labels == c).any():
            continue
        under = np.isin(child_labels, np.flatnonzero(parent_of == p))
        fired = (_slot_of(codes, matched[p]) == slots[c]) & under & (slots[c] >= 0)
        found[c] = (child_labels[fired] == c).mean() if fired.any() else 0.0
    return found


def _slot_of(codes: Active, parent: int | np.integer) -> Int[np.ndarray, " n"]:
    """Child chosen under a parent on each row; -1 where the parent is not active."""
    here = (codes.parents == parent) & (codes.values > 0)
    return np.where(here.any(1), (codes.children * here).sum(1), -1)


def usage(z: Float[np.ndarray, "n latents"]) -> dict[str, float]:
    """How latents share the work.

    - `dead_share`: latents active on no row.
    - `used_parents`: exp of the entropy of the shares q_j = (rows with j active) / (all activity): latents in use, as
      if used evenly.
    - `l0`: active parents per row.
    """
    counts = (z > 0).sum(0)
    q = counts[counts > 0] / max(1, counts.sum())
    return {
        "dead_share": float((counts == 0).mean()),
        "used_parents": float(np.exp(-(q * np.log(q)).sum())),
        "l0": float(counts.sum() / len(z)),
    }


def drift(decoder: Float[np.ndarray, "n d"], teacher: Float[np.ndarray, "n d"]) -> float:
    """Mean over parents of 1 - cos(D_j, l_j): how far the taught rows went from where they started."""
    cosines = (decoder * teacher).sum(1) / (np.linalg.norm(decoder, axis=1) * np.linalg.norm(teacher, axis=1))
    return float(1 - cosines.mean())
