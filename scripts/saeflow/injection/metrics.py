"""What is measured of an injected network, and how sure that is."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saeflow.injection.protocol import Task


def outcomes(
    logits: Float[Tensor, "m n classes"], labels: Int[Tensor, " n"], task: Task
) -> dict[str, Bool[Tensor, "m _"]]:
    """Per image: `transfer`, a concept image is answered with the concept; `preservation`, one of the target's own
    classes is answered right; `specificity`, a look-alike is answered with the concept (lower is better);
    `unseen_rate`, an image of a class that nobody knows is answered with the concept."""
    answers = logits.argmax(-1)
    says_concept = answers == task.concept

    def among(classes: tuple[int, ...]) -> Tensor:
        return torch.isin(labels, torch.tensor(classes, device=labels.device))

    return {
        "transfer": says_concept[:, among((task.concept,))],
        "preservation": (answers == labels)[:, among(task.target_classes)],
        "specificity": says_concept[:, among((task.lookalike,))],
        "unseen_rate": says_concept[:, among(task.unseen)],
    }


def auroc(positive: Float[Tensor, "m p"], negative: Float[Tensor, "m q"]) -> Float[Tensor, " m"]:
    """Chance that a positive's score exceeds a negative's, ties counted half (Mann-Whitney U over p q), per member."""
    ranks = []
    for high, low in zip(positive.double(), negative.double().sort(-1).values, strict=True):
        below = torch.searchsorted(low, high, right=False) + torch.searchsorted(low, high, right=True)
        ranks.append(below.double().mean() / 2 / len(low))
    return torch.stack(ranks)


def threshold_free(
    logits: Float[Tensor, "m n classes"], labels: Int[Tensor, " n"], task: Task
) -> dict[str, Float[Tensor, " m"]]:
    """AUROC of the concept's margin, l_c - max_{j own} l_j, for concept against own classes, and against look-alike."""
    own = logits[..., list(task.target_classes)].max(-1).values
    margin = logits[..., task.concept] - own
    concept = margin[:, labels == task.concept]
    rest = margin[:, torch.isin(labels, torch.tensor(task.target_classes, device=labels.device))]
    return {
        "auroc_own": auroc(concept, rest),
        "auroc_lookalike": auroc(concept, margin[:, labels == task.lookalike]),
    }


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
