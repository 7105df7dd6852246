"""The two spaces that hierarchical SAEs are trained in: whitened coordinates, and one scale for all dimensions."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from saeflow.geometry.contexts import LabelledContexts
from saeflow.sae.hierarchical_training import Directions

SPACES = {"causal": ("root", "g", "teacher"), "euclidean": ("plain_root", "plain_g", "euclidean_teacher")}


@dataclass(frozen=True)
class Space:
    """Coordinates x = scale * (h R - mean): mean 0 and mean squared length d over the training contexts.

    Arguments:
        root: R, Sigma^(1/2) or a scale.  Shape [d, d].
        mean: of h R over the training contexts.  Shape [d].
        scale: of the coordinates.
        g: unembedding rows in the same coordinates: logits are (x / scale + mean) . g + bias, up to a constant.
            Shape [v, d].
        bias: of the unembedding.  Shape [v].
    """

    root: Float[np.ndarray, "d d"]
    mean: Float[np.ndarray, " d"]
    scale: float
    g: Float[np.ndarray, "v d"]
    bias: Float[np.ndarray, " v"]

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray], name: str, train: Float[np.ndarray, "n d"]) -> "Space":
        """A space by name, from the arrays of `measure_geometry` and what the unembedding reads in training."""
        root, g = (arrays[key] for key in SPACES[name][:2])
        x = train @ root
        mean = x.mean(0)
        scale = float(np.sqrt(x.shape[1] / ((x - mean) ** 2).sum(1).mean()))
        return cls(root, mean, scale, g, arrays["bias"])

    def coordinates(self, h: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
        """x, in float32."""
        return (self.scale * (h @ self.root - self.mean)).astype(np.float32)

    def logits(self, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n v"]:
        """Of the unembedding's rows that count, up to a constant per row."""
        return (x / self.scale + self.mean).astype(np.float32) @ self.g.T + self.bias


def taught(
    start: str,
    space: str,
    arrays: Mapping[str, np.ndarray],
    parent_of: Int[np.ndarray, " c"],
    x: Float[np.ndarray, "n d"],
    contexts: LabelledContexts,
) -> Directions | None:
    """What the first parents of an SAE start from.

    Arguments:
        start: of the arm.
        x: coordinates of the training contexts, of which means are taken for `activation_teacher`: a parent's over
            contexts with its label, a child's less its parent's. A concept without contexts keeps its vector.
    """
    if start == "random":
        return None
    key = "shuffled_teacher" if start == "shuffled_teacher" else SPACES[space][2]
    parents, deltas = arrays[f"{key}.parents"].copy(), arrays[f"{key}.deltas"].copy()
    if start == "activation_teacher":
        for p in range(len(parents)):
            if (seen := contexts.parent == p).any():
                parents[p] = x[seen].mean(0)
                for c in np.flatnonzero(parent_of == p):
                    if (own := contexts.child == c).any():
                        deltas[c] = x[own].mean(0) - parents[p]
    return Directions(
        *(torch.from_numpy(np.asarray(a, np.float32)) for a in (parents, deltas)), torch.tensor(parent_of)
    )
