"""What is measured of an injected network, and how sure that is."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saeflow.injection.task import Task


class Outcomes:
    """What networks' answers to a set of images come to.

    Arguments:
        labels: of the images.
        task: whose concept it is about.
    """

    def __init__(self, labels: Int[Tensor, " n"], task: Task) -> None:
        self.labels, self.task = labels, task
        classes = (task.concept,), task.target_classes, (task.lookalike,), task.unseen
        self._concept, self._own, self._lookalike, self._unseen = map(self._among, classes)

    def _among(self, classes: tuple[int, ...]) -> Int[Tensor, " some"]:
        of_classes = torch.isin(self.labels, torch.tensor(classes, device=self.labels.device))
        return of_classes.nonzero().squeeze(1)

    def __call__(self, logits: Float[Tensor, "m n classes"]) -> dict[str, Bool[Tensor, "m _"]]:
        """Per image: `transfer`, a concept image is answered with the concept; `preservation`, one of the target's own
        classes is answered right; `specificity`, a look-alike is answered with the concept (lower is better);
        `unseen_rate`, an image of a class that nobody knows is answered with the concept."""
        answers = logits.argmax(-1)
        says_concept = answers == self.task.concept
        return {
            "transfer": says_concept.index_select(1, self._concept),
            "preservation": (answers == self.labels).index_select(1, self._own),
            "specificity": says_concept.index_select(1, self._lookalike),
            "unseen_rate": says_concept.index_select(1, self._unseen),
        }

    def shares(self, logits: Float[Tensor, "m n classes"]) -> dict[str, Float[Tensor, " m"]]:
        """Of the images, per member."""
        return {name: hit.double().mean(1) for name, hit in self(logits).items()}

    def threshold_free(self, logits: Float[Tensor, "m n classes"]) -> dict[str, Float[Tensor, " m"]]:
        """AUROC of the concept's margin, l_c - max_{j own} l_j, for concept against own classes, and against
        look-alike."""
        own = logits[..., list(self.task.target_classes)].max(-1).values
        margin = logits[..., self.task.concept] - own
        concept = margin.index_select(1, self._concept)
        return {
            "auroc_own": auroc(concept, margin.index_select(1, self._own)),
            "auroc_lookalike": auroc(concept, margin.index_select(1, self._lookalike)),
        }


def auroc(positive: Float[Tensor, "m p"], negative: Float[Tensor, "m q"]) -> Float[Tensor, " m"]:
    """Chance that a positive's score exceeds a negative's, ties counted half (Mann-Whitney U over p q), per member."""
    high, low = positive.double(), negative.double().sort(-1).values
    below = torch.searchsorted(low, high, right=False) + torch.searchsorted(low, high, right=True)
    return below.double().mean(-1) / 2 / low.shape[-1]


def bootstrap_interval(
    hits: Float[Tensor, "seeds images"], generator: torch.Generator, *, n_resamples: int, level: float = 0.95
) -> tuple[float, float]:
    """Interval of the mean under resampling of seeds and of images, both with replacement (Owen 2007, pigeonhole).

    Arguments:
        hits: outcome of each image at each seed, averaged over whatever else there is (pairs of architectures).
        generator: on the CPU.
        n_resamples: bootstrap samples.
        level: coverage.
    """
    n_seeds, n_images = hits.shape
    hits = hits.double().cpu()
    seeds = torch.randint(n_seeds, (n_resamples, n_seeds), generator=generator)
    images = torch.randint(n_images, (n_resamples, n_images), generator=generator)
    of_seeds = torch.nn.functional.one_hot(seeds, n_seeds).sum(1).double() / n_seeds
    means = (of_seeds @ hits).gather(1, images).mean(1)
    low, high = means.quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)).tolist()
    return low, high
