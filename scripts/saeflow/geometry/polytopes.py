"""Polytopes in two and three dimensions: words and vertices projected onto the planes that the vectors span."""

import numpy as np
import pandas as pd
from jaxtyping import Float

from saeflow.geometry.concepts import Concepts
from saeflow.geometry.hierarchy import Teacher

AXES = ("x", "y", "z")


def orthonormal(vectors: Float[np.ndarray, "k d"]) -> Float[np.ndarray, "k d"]:
    """Gram-Schmidt: the first axis is the first vector's direction, the others what each adds."""
    q, r = np.linalg.qr(vectors.T)
    return (q * np.where(np.diag(r) < 0, -1, 1)).T


def projected(g: Float[np.ndarray, "n d"], concepts: Concepts, teacher: Teacher, n_parents: int = 4) -> pd.DataFrame:
    """Words and vertices of the parents with the most children, in planes of their own.

    Two figures for each parent: `plane`, spanned by l_p and the offset of its largest child (2-D: hierarchy is a right
    angle at l_p), and `polytope`, the first three principal axes of its children's vertices (3-D). The scale is that
    of |l_p| = 1.

    Returns:
        `parent`, `view`, `kind` (vertex, word, held-out word, other word), `child`, `text`, `x`, `y`, `z`.
    """
    sizes = np.bincount(concepts.parent_of, minlength=len(concepts.parents))
    rows = []
    for p in np.argsort(-sizes, kind="stable")[:n_parents]:
        own = np.flatnonzero(concepts.parent_of == p)
        scale = np.linalg.norm(teacher.parents[p])
        largest = own[np.argmax([(concepts.child == c).sum() for c in own])]
        center = teacher.children[own].mean(0)
        main = np.linalg.svd(teacher.children[own] - center, full_matrices=False)[2][:3]
        views = {
            "plane": (orthonormal(np.stack([teacher.parents[p], teacher.deltas[largest]])), np.zeros_like(center)),
            "polytope": (main, center),
        }
        others = np.flatnonzero(concepts.parent != p)[:: max(1, (concepts.parent != p).sum() // 60)]
        for view, (axes, origin) in views.items():
            chosen = [largest] if view == "plane" else own
            points = [("vertex", concepts.children[c], concepts.children[c], teacher.children[c]) for c in chosen]
            if view == "plane":
                points.insert(0, ("vertex", "", concepts.parents[p], teacher.parents[p]))
            for i in np.flatnonzero(concepts.parent == p):
                c = concepts.child[i]
                kind = "held-out word" if concepts.held_out[i] else "word"
                points.append((kind, concepts.children[c] if c >= 0 else "", concepts.table["text"][i], g[i]))
            points += [("other word", "", concepts.table["text"][i], g[i]) for i in others]
            for kind, child, text, vector in points:
                place = np.zeros(3)
                place[: len(axes)] = axes @ (vector - origin) / scale
                row = {"parent": concepts.parents[p], "view": view, "kind": kind, "child": child, "text": text}
                rows.append(row | dict(zip(AXES, place, strict=True)))
    return pd.DataFrame(rows)
