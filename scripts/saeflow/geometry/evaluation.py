"""Everything that is measured of one hierarchical SAE: what it recovers, rebuilds, absorbs, and how its rows steer."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.special import logsumexp

from saeflow.geometry import absorption, recovery, steering
from saeflow.geometry.concepts import Concepts
from saeflow.geometry.contexts import NONE, LabelledContexts
from saeflow.geometry.recovery import Active
from saeflow.geometry.spaces import Space
from saeflow.sae.hierarchical import HierarchicalSAEs

N_STEERED = 16
"""Contexts without a label in which rows are added for `steering KL`."""
N_PREDICTED = 1024
"""Test contexts on which cross-entropy is measured, at most."""


@dataclass
class Bench:
    """What SAEs of one space are measured on; made once, used by all of them.

    Arguments:
        space: coordinates.
        select, test: contexts on which latents are matched, and measured.
        concepts: whose labels the contexts have.
        words: row of the unembedding (of those that count) of each of the concepts' words.
        place: row of the unembedding of each token id; -1 where it does not count.
    """

    space: Space
    select: LabelledContexts
    test: LabelledContexts
    concepts: Concepts
    words: Int[np.ndarray, " n"]
    place: Int[np.ndarray, " vocabulary"]

    @cached_property
    def x_select(self) -> Float[np.ndarray, "n d"]:
        return self.space.coordinates(self.select.h)

    @cached_property
    def x_test(self) -> Float[np.ndarray, "n d"]:
        return self.space.coordinates(self.test.h)

    @cached_property
    def probes(self) -> list[absorption.Probe | None]:
        """A probe of each parent, fitted on the selection split; none where it has fewer than 5 contexts of it."""
        found = []
        for p in range(len(self.concepts.parents)):
            seen = self.select.parent == p
            enough = seen.sum() >= 5 and not seen.all()
            found.append(absorption.probe(self.x_select, seen, self.x_test) if enough else None)
        return found

    @cached_property
    def predicted(self) -> Int[np.ndarray, " n"]:
        """Test contexts whose next token is known and counts, evenly from all: those with a label come first."""
        known = np.flatnonzero(self.test.next_token != NONE)
        counts = known[self.place[self.test.next_token[known]] >= 0]
        return counts[np.linspace(0, len(counts) - 1, min(N_PREDICTED, len(counts))).round().astype(int)]

    def cross_entropy(self, x: Float[np.ndarray, "n d"]) -> float:
        """Mean over `predicted` of -log p(next token) with x in place of the activations, in nats."""
        logits = self.space.logits(x)
        own = logits[np.arange(len(logits)), self.place[self.test.next_token[self.predicted]]]
        return float((logsumexp(logits, axis=1) - own).mean())

    @cached_property
    def references(self) -> tuple[float, float]:
        """Cross-entropy with the activations, and with their mean in their place."""
        x = self.x_test[self.predicted]
        return self.cross_entropy(x), self.cross_entropy(np.zeros_like(x))

    @cached_property
    def unlabelled_logits(self) -> Float[np.ndarray, "n v"]:
        rows = np.flatnonzero(self.test.parent == NONE)[:N_STEERED]
        return self.space.logits(self.x_test[rows])


def codes_of(sae: HierarchicalSAEs, x: Float[np.ndarray, "n d"]) -> tuple[Active, np.ndarray]:
    """Codes and reconstructions of a stack of one."""
    # A copy in memory that torch aligns: on which side of a boundary an array starts may change last bits of a product.
    with torch.no_grad():
        codes, x_hat = sae.forward(torch.tensor(x)[None])
    children = None if codes.children is None else codes.children[0].numpy()
    return Active(codes.parents[0].numpy(), codes.values[0].numpy(), children), x_hat.full[0].numpy()


def explained_variance(x: Float[np.ndarray, "n d"], x_hat: Float[np.ndarray, "n d"]) -> float:
    """1 - sum |x - x_hat|^2 / sum |x - mean(x)|^2, over all rows given; NaN without any."""
    if len(x) == 0:
        return float("nan")
    return float(1 - ((x - x_hat) ** 2).sum(dtype=float) / ((x - x.mean(0)) ** 2).sum(dtype=float))


def evaluate(
    sae: HierarchicalSAEs, bench: Bench, teacher: Float[np.ndarray, "n d"] | None = None
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Numbers of an SAE, and of each parent concept.

    Arguments:
        sae: a stack of one.
        teacher: rows that its first parents started from, for `drift`.
    Returns:
        - `purity`, `recall`, `child_purity`: means over concepts; `leak_mass`, `leak_rate`: see `recovery`.
        - `steering_leak`, `steering_leak_median`: RMS centred logit change of other parents' words over the mean change
          of p's words, by the decoder row of j(p): mean and median over p. `steering_kl`: median over p of
          KL(steered || unsteered) where p's mass reaches 0.25; `steerable`: share of parents that reach it.
        - `absorption`, `full_absorption`, `splits`: means over parents, see `absorption`.
        - `ev`, `ev_concept`: explained variance on all test contexts and on those with a label; `one_minus_ev`.
        - `ce_recovered` = (CE_mean - CE_sae) / (CE_mean - CE_clean), against mean ablation (at this layer zero ablation
          is the bias' distribution); `one_minus_ce`.
        - `dead_share`, `used_parents`, `l0`, and `drift` of a taught SAE.
    """
    concepts, decoder = bench.concepts, sae.parameters["decoder"][0].numpy()
    n_latents, n_parents = len(decoder), len(concepts.parents)
    chosen, _ = codes_of(sae, bench.x_select)
    codes, x_hat = codes_of(sae, bench.x_test)
    z_select, z = chosen.dense(n_latents), codes.dense(n_latents)
    matched = recovery.match(recovery.f1_scores((z_select > 0).astype(float), bench.select.parent, n_parents))
    found = recovery.recovery(z, bench.test.parent, matched)
    rows = [
        {
            "concept": name,
            "purity": found.purity[p],
            "recall": found.recall[p],
            "elsewhere": found.elsewhere[p],
            "activity": found.total[p],
            **_steered(decoder[matched[p]], p, bench),
            **_absorbed(z_select, z, decoder, p, bench),
        }
        for p, name in enumerate(concepts.parents)
    ]

    def over(name: str, how: Any = np.nanmean) -> float:
        values = np.array([row[name] for row in rows], float)
        return float(how(values)) if np.isfinite(values).any() else float("nan")

    labelled = bench.test.parent != NONE
    clean, ablated = bench.references
    recovered = (ablated - bench.cross_entropy(x_hat[bench.predicted])) / (ablated - clean)
    ev = explained_variance(bench.x_test, x_hat)
    numbers = {
        "purity": over("purity"),
        "recall": over("recall"),
        "leak_mass": found.leak_mass,
        "leak_rate": found.leak_rate,
        "steering_leak": over("steering_leak"),
        "steering_leak_median": over("steering_leak", np.nanmedian),
        "steering_kl": over("steering_kl", np.nanmedian),
        "steerable": float(np.mean([np.isfinite(row["steering_kl"]) for row in rows])),
        "absorption": over("absorption"),
        "full_absorption": over("full_absorption"),
        "splits": over("splits"),
        "ev": ev,
        "one_minus_ev": 1 - ev,
        "ev_concept": explained_variance(bench.x_test[labelled], x_hat[labelled]),
        "ce_recovered": recovered,
        "one_minus_ce": 1 - recovered,
        **recovery.usage(z),
    }
    if chosen.children is not None:
        n_slots = sae.parameters["child_decoder"].shape[2]
        slots = recovery.child_matches(chosen, bench.select.child, concepts.parent_of, matched, n_slots)
        pure = recovery.child_purity(codes, bench.test.child, concepts.parent_of, matched, slots)
        numbers["child_purity"] = float(np.nanmean(pure)) if np.isfinite(pure).any() else float("nan")
    if teacher is not None:
        numbers["drift"] = recovery.drift(decoder[: len(teacher)], teacher)
    return numbers, rows


def _steered(row: Float[np.ndarray, " d"], p: int, bench: Bench) -> dict[str, float]:
    change = bench.space.g @ row
    own, others = _masks(bench, p)
    effect = steering.effect(change, own, others)
    dose, kl = steering.kl_at_mass(bench.unlabelled_logits, change, own)
    return {"steering_leak": effect.leak, "steering_kl": kl, "steering_dose": dose if np.isfinite(dose) else np.nan}


def _masks(bench: Bench, p: int) -> tuple[Bool[np.ndarray, " v"], Bool[np.ndarray, " v"]]:
    own, others = (np.zeros(len(bench.space.g), bool) for _ in range(2))
    own[bench.words[bench.concepts.parent == p]] = True
    others[bench.words[bench.concepts.parent != p]] = True
    return own, others


def _absorbed(z_select: np.ndarray, z: np.ndarray, decoder: np.ndarray, p: int, bench: Bench) -> dict[str, float]:
    """On test contexts with p's label that its probe gets right."""
    probe = bench.probes[p]
    asked = (bench.test.parent == p) & (False if probe is None else probe.predicts)
    if not asked.any():
        return dict.fromkeys(("absorption", "full_absorption", "splits"), float("nan"))
    main = absorption.splits(z_select, bench.select.parent == p)
    fraction, full = absorption.absorption(bench.x_test[asked], z[asked], decoder, probe.direction, main)
    return {"absorption": float(fraction.mean()), "full_absorption": float(full.mean()), "splits": float(len(main))}
