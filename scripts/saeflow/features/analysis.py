"""Everything that is worked out about the latents of one SAE on an image classifier, in one call."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saeflow.config.images import Features
from saeflow.features import decoder_geometry, descriptors, effects, hypotheses, patterns
from saeflow.features.bank import FeatureBank, collect
from saeflow.reproduce import child_seed
from saeflow.sae.architectures import SparseAutoencoder


@dataclass(frozen=True)
class Split:
    """Rows of one split: row i of each."""

    activations: Float[Tensor, "rows d_in"]
    """Values at the hook point, in the store's own units."""
    images: Float[Tensor, "rows 1 h w"]
    labels: Int[Tensor, " rows"]

    def __post_init__(self) -> None:
        rows = [len(self.activations), len(self.images), len(self.labels)]
        if len(set(rows)) > 1:
            raise ValueError(
                f"split: {rows[0]} activations, {rows[1]} images, {rows[2]} labels; expected one of each per row"
            )


@dataclass(frozen=True)
class Context:
    """What all SAEs on one dataset share: the quantile levels of the images' properties."""

    train_levels: Int[Tensor, "train_rows properties"]
    test_levels: Int[Tensor, "test_rows properties"]
    words: tuple[tuple[str, ...], tuple[str, ...]]
    n_labels: int
    label_names: tuple[str, ...] = ()

    @classmethod
    def of(cls, train: Split, test: Split, n_labels: int, label_names: tuple[str, ...] = ()) -> "Context":
        first, second = (descriptors.image_descriptors(split.images) for split in (train, test))
        return cls(*descriptors.levels(first.values, second.values), (first.high, first.low), n_labels, label_names)


@dataclass(frozen=True)
class Analysis:
    """Results for one SAE, all [d_sae, ...]."""

    bank: FeatureBank
    """On the training split."""
    test_bank: FeatureBank
    patterns: dict[str, Float[Tensor, "d_sae pixels"]]
    pattern_scores: dict[str, patterns.PatternScores]
    random_keep_r2: Float[Tensor, " d_sae"]
    """Deletion test with as many pixels drawn at random: what a pattern has to beat."""
    effects: effects.Effects
    geometry: decoder_geometry.DecoderGeometry
    hypotheses: hypotheses.Hypotheses


def analyze(
    sae: SparseAutoencoder,
    train: Split,
    test: Split,
    hook: patterns.Hook,
    logits_from: effects.Continue,
    context: Context,
    spec: Features,
    seed: int,
) -> Analysis:
    """Bank, patterns, effects, geometry and hypotheses of all latents.

    Patterns, effects and rules come from the training split; the deletion test and the hypotheses' scores from the test
    split.

    Arguments:
        sae: on the same device as everything else.
        hook: images to activation vectors, differentiable.
        logits_from: activation vectors to logits.
        context: `Context.of` the two splits, shared by all SAEs on them.
        seed: root of the random draws.
    """
    n_sample = max(spec.effect_examples, spec.pattern_examples)
    fired, seen = (sae.encode_sparse(split.activations) for split in (train, test))
    bank, test_bank = (
        collect(
            [codes],
            top=spec.top_examples,
            sample=n_sample,
            labels=split.labels,
            n_labels=context.n_labels,
            seed=child_seed(seed, "sample", name),
        )
        for name, codes, split in (("train", fired, train), ("test", seen, test))
    )
    mean = train.images.flatten(1).mean(0)
    slopes = patterns.gradients(hook, sae.W_enc, train.images, bank.sample.first(spec.pattern_examples), mean)
    found = dict(zip(patterns.NAMES, (*slopes, patterns.haufe(fired, train.images)), strict=True))
    keep_r2 = _keep_r2(found, bank, test_bank, test, hook, sae.W_enc, mean, spec, seed)
    evidence = [
        hypotheses.evidence(codes, split.labels, level, context.n_labels)
        for codes, split, level in ((fired, train, context.train_levels), (seen, test, context.test_levels))
    ]
    return Analysis(
        bank,
        test_bank,
        found,
        {name: _pattern_scores(found[name], r2, train, bank) for name, r2 in zip(found, keep_r2[:-1], strict=True)},
        keep_r2[-1],
        effects.logit_effects(
            logits_from,
            sae.W_dec,
            train.activations,
            bank.sample.first(spec.effect_examples),
            bank.mean_active,
            n_added=spec.effect_examples,
            seed=child_seed(seed, "effects"),
        ),
        decoder_geometry.decoder_geometry(sae.W_dec, sae.W_enc, spec.neighbours),
        hypotheses.hypothesize(
            *evidence, seed=child_seed(seed, "null"), label_names=context.label_names, words=context.words
        ),
    )


def _keep_r2(
    found: dict[str, Tensor],
    bank: FeatureBank,
    test_bank: FeatureBank,
    test: Split,
    hook: patterns.Hook,
    encoder: Tensor,
    mean: Tensor,
    spec: Features,
    seed: int,
) -> Float[Tensor, "kinds d_sae"]:
    """Deletion test of each pattern and, last, of pixels drawn at random; NaN for dead latents."""
    control = torch.rand(found["haufe"].shape, generator=torch.Generator().manual_seed(child_seed(seed, "pixels")))
    ranked = torch.stack([*found.values(), control.to(mean)])
    scores = torch.full(ranked.shape[:2], torch.nan, dtype=torch.float32, device=mean.device)
    alive = (~bank.dead).nonzero()[:, 0]
    shown = test_bank.sample.first(max(1, spec.pattern_examples // 2)).of(alive)
    tests = patterns.probes(test_bank.n_rows, shown, child_seed(seed, "deletion"))
    masks = torch.stack([patterns.strongest(kind[alive], spec.keep_share) for kind in ranked])
    scores[:, alive] = patterns.keep_r2(masks, hook, encoder[:, alive], test.images, test.activations, mean, tests)
    return scores


def _pattern_scores(pattern: Tensor, keep_r2: Tensor, train: Split, bank: FeatureBank) -> patterns.PatternScores:
    lit = (train.images.flatten(1) > 0).any(0)
    return patterns.PatternScores(
        keep_r2,
        patterns.smoothness(pattern, tuple(train.images.shape[2:])),
        patterns.top_cosine(pattern, train.images, bank.top),
        patterns.off_energy(pattern, lit),
    )
