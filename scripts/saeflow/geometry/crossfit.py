"""The angle between a parent's vector and a child's offset from it, with no word on both sides."""

import numpy as np
from jaxtyping import Float

from saeflow.geometry.concept_vectors import angles, concept_vectors
from saeflow.geometry.concepts import Concepts


def crossfit_angles(
    g: Float[np.ndarray, "n d"],
    concepts: Concepts,
    rng: np.random.Generator,
    n_splits: int = 5,
    random_parents: bool = False,
) -> Float[np.ndarray, "splits children"]:
    """angle(l_p^A, l_c^B - l_p^A) in degrees: the words of each child cut in halves A and B, the parent fitted on A.

    90 where a child is its parent's direction plus something orthogonal. Without structure l_p^A and l_c^B are
    independent, of lengths a and b: the cosine is -a / sqrt(a^2 + b^2), so angles lie well above 90, which the nested
    angle (`saeflow.geometry.published`) cannot show. Crossing both terms, l_p^A against l_c^B - l_p^B, would give 90 on
    noise again.

    Arguments:
        random_parents: take, for l_p, the vector of another parent, drawn anew for each child.
    """
    rows = []
    for _ in range(n_splits):
        first = concepts.halves(rng)
        parents = concept_vectors(g, [first & (concepts.parent == p) for p in range(len(concepts.parents))])
        children = concept_vectors(g, [~first & (concepts.child == c) for c in range(len(concepts.children))])
        chosen = concepts.parent_of
        if random_parents:
            step = rng.integers(1, len(concepts.parents), size=len(chosen))
            chosen = (chosen + step) % len(concepts.parents)
        rows.append(angles(parents[chosen], children - parents[chosen]))
    return np.stack(rows)


def median_angle(values: Float[np.ndarray, "splits children"]) -> float:
    """Median over splits of the median over children, in degrees."""
    return float(np.median(np.median(values, axis=-1)))
