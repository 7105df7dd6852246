"""One method over all pairs, seeds and controls: injected, calibrated on held-out images, measured once on the test."""

import itertools
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from saeflow.datasets.images import ImageSplit
from saeflow.injection import metrics
from saeflow.injection.answers import Answers
from saeflow.injection.calibration import calibrated_shifts, shifted
from saeflow.injection.forward import Forward
from saeflow.injection.materials import Materials
from saeflow.injection.method import Method, NotApplicableError, Stage
from saeflow.injection.networks import Spliced, multiply_adds, n_parameters
from saeflow.injection.protocol import Guard
from saeflow.injection.task import Task
from saeflow.models.classifiers import StackedClassifier
from saeflow.reproduce import child_seed

T = TypeVar("T")
log = logging.getLogger(__name__)

GAMMAS = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0)
"""Weights of the target's own uncertainty, -max_j l_j, in the curve of transfer against specificity."""
NOISE = 0.2
"""Standard deviation of the pixel noise behind `transfer_noisy`; pixels are in [0, 1]."""
_BATCH_SIZE = 2048


class Results(NamedTuple):
    """Tidy tables of one method.

    Arguments:
        measures: a row per variant, control, pair, seed, stage and concept.
        curve: a row per variant, pair, seed and gamma; without controls.
        intervals: a row per variant, control and metric: mean over all pairs and seeds, 95 % bootstrap interval.
        confusion, examples: of each variant, over all pairs and seeds, as `saeflow.injection.answers.Answers` has them;
            without controls.
        seconds: a row per variant, control and pair: wall-clock time of the injection, of all seeds together; what was
            fitted for several pairs and controls at once counts for each with its share.
    """

    measures: pa.Table
    curve: pa.Table
    intervals: pa.Table
    confusion: pa.Table
    examples: pa.Table
    seconds: pa.Table


class Images(NamedTuple):
    """Images on the study's device, and their labels."""

    images: Float[Tensor, "n 1 h w"]
    labels: Int[Tensor, " n"]

    @classmethod
    def of(cls, split: ImageSplit, device: torch.device | str, classes: Sequence[int] | None = None) -> "Images":
        """Images of a split, or of some of its classes."""
        chosen = split if classes is None else split[np.isin(split.labels, classes)]
        return cls(torch.from_numpy(chosen.inputs()).to(device), torch.from_numpy(chosen.labels).to(device))


@dataclass(frozen=True)
class Calibrated:
    """A stage of one variant under one control on one pair, ready to be measured."""

    method: Method
    control: str
    pair: tuple[str, str]
    target: StackedClassifier
    stage: Stage
    last: bool
    held_out: Float[Tensor, "m n classes"]
    """Logits of the calibration images, before the shift."""
    shifts: dict[int, Float[Tensor, " m"]]
    seconds: float
    """Wall-clock time of the injection, with all its stages."""

    @property
    def identity(self) -> dict[str, Any]:
        """First columns of every table."""
        return {
            "method": self.method.name,
            "family": self.method.family,
            "variant": self.method.variant,
            "tier": self.method.tier,
            "site": self.method.site,
            "control": self.control,
        }


def run(
    variants: Sequence[Method],
    materials: Materials,
    calibration: ImageSplit,
    test: ImageSplit,
    pairs: Sequence[tuple[str, str]],
    seeds: Sequence[int],
) -> Results:
    """Inject, calibrate and measure every variant, control and pair.

    Everything is injected and calibrated before the first test image is looked at.

    Arguments:
        variants: of one method.
        materials: what the study has, networks among it.
        calibration, test: splits that no method sees.
        pairs: [source, target] architectures.
        seeds: of the target's networks, for the tables.
    """
    own = Images.of(calibration, materials.device, materials.task.target_classes)
    materials.named("calibration", own.images)
    by_target = {target: [pair for pair in sorted(pairs) if pair[1] == target] for _, target in sorted(pairs)}
    ready: dict[str, list[Calibrated]] = {method.label: [] for method in variants}
    for together in _sharing(variants):
        # Everything of one target together: its values on common images, and what is fitted on them, are remembered.
        for target, of_target in by_target.items():
            networks: set[StackedClassifier] = set()
            for method in together:
                found = _inject(method, of_target, materials, own)
                ready[method.label] += found
                networks |= {item.target for item in found}
                n_done = len({item.pair for item in found if not item.control})
                done = f"{method.label} into {target}: {n_done} of {len(of_target)} pairs, the others do not apply"
                log.info("%s; %d controls", done, len({item.control for item in found} - {""}))
            for network in networks:
                materials.forget(network)
        materials.remembered.clear()
    read = Images.of(test, materials.device)
    materials.named("test", read.images)
    return _measure(list(itertools.chain(*ready.values())), materials, own, read, seeds)


def _sharing(variants: Sequence[Method]) -> list[list[Method]]:
    """Variants that share their draws, and so what they remember, together."""
    return [
        [method for method in variants if method.draws == draws] for draws in dict.fromkeys(m.draws for m in variants)
    ]


class Asked(NamedTuple):
    """One injection."""

    control: str
    pair: tuple[str, str]
    source: StackedClassifier
    target: StackedClassifier
    guard: Guard

    @classmethod
    def of(cls, method: Method, control: str, pair: tuple[str, str], materials: Materials) -> "Asked":
        source, target = materials.pair(pair, control)
        guard = Guard(
            materials,
            method.knowledge,
            asker=method.label,
            source=source,
            target=target,
            draws=method.draws,
            roles=materials.roles(control),
            drop_concept=control == "no_lookalike_inputs",
        )
        return cls(control, pair, source, target, guard)


def _inject(method: Method, pairs: Sequence[tuple[str, str]], materials: Materials, own: Images) -> list[Calibrated]:
    """Injected and calibrated networks of all pairs of a target, by control; none where the method does not apply."""
    controls = ["", *(c for c in method.controls if c != "blind_source" or materials.settings.blind is not None)]
    of_sources = pairs if method.uses_source else pairs[:1]
    asked = [Asked.of(method, control, pair, materials) for control in controls for pair in of_sources]
    seconds: dict[StackedClassifier, float] = {}
    for target in dict.fromkeys(job.target for job in asked):
        same = [job for job in asked if job.target is target]
        started = time.perf_counter()
        method.prepare([job.source for job in same], target, [job.guard for job in same])
        seconds[target] = (time.perf_counter() - started) / len(same)
    found: list[Calibrated] = []
    for job in asked:
        started = time.perf_counter()
        try:
            stages = list(method.stages(job.source, job.target, job.guard))
        except NotApplicableError as error:
            log.debug("%s, %s to %s: not applicable: %s", method.label, *job.pair, error)
            continue
        calibrated = []
        for stage in stages:
            logits = predict(stage.network, own.images, materials.forward)
            keep, largest = materials.settings.preservation, method.largest_shift
            shifts = calibrated_shifts(logits, stage.concepts, keep, largest)
            calibrated.append((stage, logits, shifts))
        elapsed = seconds[job.target] + time.perf_counter() - started
        for pair in [job.pair] if method.uses_source else pairs:
            for stage, logits, shifts in calibrated:
                last = stage is stages[-1]
                found.append(Calibrated(method, job.control, pair, job.target, stage, last, logits, shifts, elapsed))
    return found


@torch.no_grad()
def predict(network: nn.Module, images: Float[Tensor, "n 1 h w"], forward: Forward) -> Float[Tensor, "m n classes"]:
    """Logits of all members, in batches; what a spliced network's target gives on the same images is computed once."""
    if not isinstance(network, Spliced):
        return torch.cat([network(batch) for batch in images.split(_BATCH_SIZE)], dim=1)
    parts = network.parts()
    made = [forward.through(part, network.target, images, network.site) for part in parts]
    whole = *forward.several(network.target, images, ("logits", network.site)), *made
    batches = zip(*(values.split(_BATCH_SIZE, dim=1) for values in whole), strict=True)
    return torch.cat(
        [network.injected(logits, h, dict(zip(parts, made, strict=True))) for logits, h, *made in batches], dim=1
    )


@dataclass(frozen=True)
class _Bench:
    """What everything is measured on."""

    materials: Materials
    own: Images
    test: Images
    noisy: Float[Tensor, "n 1 h w"]
    """The concept's test images with pixel noise."""
    seeds: Sequence[int]

    @cached_property
    def outcomes(self) -> dict[int, metrics.Outcomes]:
        """On the test images, by the class that is asked for as the concept."""
        task = self.materials.task
        return {c: metrics.Outcomes(self.test.labels, task.with_concept(c)) for c in range(task.n_classes)}

    def cost(self, target: StackedClassifier) -> tuple[int, int]:
        """Parameters and multiply-adds of a member of a target, counted once."""
        if target not in self._costs:
            self._costs[target] = _cost(target, target.n_members, self.test.images)
        return self._costs[target]

    @cached_property
    def _costs(self) -> dict[StackedClassifier, tuple[int, int]]:
        return {}


def _measure(
    ready: Sequence[Calibrated],
    materials: Materials,
    own: Images,
    test: Images,
    seeds: Sequence[int],
) -> Results:
    """Tables of everything, from one reading of the test split."""
    draw = torch.Generator().manual_seed(child_seed(materials.seed, "injection", "noise"))
    noise = NOISE * torch.randn(test.images.shape, generator=draw).to(test.images)
    task = materials.task
    noisy = (test.images + noise)[test.labels == task.concept].clamp(0, 1)
    bench = _Bench(materials, own, test, noisy, seeds)
    measures, curve, seconds = [], [], []
    costs: dict[tuple, dict[str, int]] = {}
    hits: dict[tuple, dict[str, list[Tensor]]] = {}
    answers: dict[tuple, Answers] = {}
    found: _Found | None = None
    for i, item in enumerate(ready):
        # A network that no source is in stands for all pairs of its target, one after another.
        if found is None or found.stage is not item.stage:
            found = _Found.of(item, bench)
        of_pair = item.identity | dict(zip(("source", "target"), item.pair, strict=True))
        names = of_pair | {"stage": item.stage.name}
        # A control changes weights, not sizes.
        key = item.method.label, item.pair, item.stage.name
        costs[key] = costs.get(key) or _added_cost(item, bench)
        measures += (names | values | costs[key] for values in found.measures)
        if item.last:
            seconds.append(of_pair | {"seconds": item.seconds})
            variant = tuple(item.identity.items())
            for name, hit in found.outcomes.items():
                hits.setdefault(variant, {}).setdefault(name, []).append(hit)
            if not item.control:
                curve += (names | values for values in found.curve)
                counted = answers.setdefault(variant, Answers(test.labels, task.n_classes, task))
                alone = materials.forward(item.target, test.images, "logits")
                counted.add(alone.argmax(-1), found.answers)
        if (i + 1) % 100 == 0:
            log.info("measured %d of %d", i + 1, len(ready))
    intervals = _intervals(hits, materials)
    confusion = [dict(key) | row for key, found in answers.items() for row in found.confusion()]
    examples = [dict(key) | row for key, found in answers.items() for row in found.examples()]
    return Results(*map(pa.Table.from_pylist, (measures, curve, intervals, confusion, examples, seconds)))


class _Found(NamedTuple):
    """What the test split says of one stage."""

    stage: Stage
    measures: list[dict[str, Any]]
    outcomes: dict[str, Float[Tensor, "m _"]]
    answers: Int[Tensor, "m n"]
    curve: list[dict[str, Any]]
    """Of a last stage without a control; else empty."""

    @classmethod
    def of(cls, item: Calibrated, bench: _Bench) -> "_Found":
        raw = predict(item.stage.network, bench.test.images, bench.materials.forward)
        final = shifted(raw, item.shifts)
        outcomes = bench.outcomes[bench.materials.task.concept](final)
        curve = list(_curve(item, raw, bench)) if item.last and not item.control else []
        hits = {name: hit.float() for name, hit in outcomes.items()}
        return cls(item.stage, list(_measured(item, raw, bench)), hits, final.argmax(-1), curve)


def _measured(item: Calibrated, raw: Tensor, bench: _Bench) -> Iterator[dict[str, Any]]:
    """A row per injected concept and seed."""
    task = bench.materials.task
    logits = shifted(raw, item.shifts)
    alone = bench.materials.forward(item.target, bench.test.images, "logits")
    for concept in item.stage.concepts:
        outcomes = bench.outcomes[concept]
        row = outcomes.shares(logits) | outcomes.threshold_free(raw)
        row["own_accuracy"] = outcomes.shares(alone)["preservation"]
        row["shift"] = item.shifts[concept].double()
        row["transfer_noisy"] = torch.full_like(row["shift"], torch.nan)
        if concept == task.concept and not item.control:
            answers = shifted(predict(item.stage.network, bench.noisy, bench.materials.forward), item.shifts).argmax(-1)
            row["transfer_noisy"] = (answers == concept).double().mean(1)
        yield from ({"concept": concept, "seed": seed} | values for seed, values in _rows(bench.seeds, row))


def _rows(names: Sequence[T], columns: dict[str, Float[Tensor, " m"]]) -> Iterator[tuple[T, dict[str, float]]]:
    """Each member's name and values."""
    for name, *values in zip(names, *(column.tolist() for column in columns.values()), strict=True):
        yield name, dict(zip(columns, values, strict=True))


def _added_cost(item: Calibrated, bench: _Bench) -> dict[str, int]:
    """What a member of the injected network has and does more than the target's at inference."""
    whole, own = _cost(item.stage.network, item.target.n_members, bench.test.images), bench.cost(item.target)
    return {"added_parameters": whole[0] - own[0], "added_multiply_adds": whole[1] - own[1]}


def _cost(network: nn.Module, n_members: int, images: Float[Tensor, "n 1 h w"]) -> tuple[int, int]:
    return n_parameters(network, n_members), multiply_adds(network, images.shape[-2:])


def _curve(item: Calibrated, raw: Tensor, bench: _Bench) -> Iterator[dict[str, Any]]:
    """Transfer against specificity at one preservation: gamma times the target's uncertainty added to the score."""
    task, keep = bench.materials.task, bench.materials.settings.preservation
    held_out, logits = (_with_uncertainty(values, task) for values in (item.held_out, raw))
    shifts = calibrated_shifts(held_out, item.stage.concepts, keep)
    shares = bench.outcomes[task.concept].shares(shifted(logits, shifts))
    every = [(gamma, seed) for gamma in GAMMAS for seed in bench.seeds]
    yield from ({"seed": seed, "gamma": gamma} | values for (gamma, seed), values in _rows(every, shares))


def _with_uncertainty(logits: Float[Tensor, "m n classes"], task: Task) -> Float[Tensor, "gammas_m n classes"]:
    """Logits with -gamma max_{j own} l_j added to the concept's: members with one gamma, then with the next."""
    gammas = torch.tensor(GAMMAS).to(logits)
    changed = logits.repeat(len(GAMMAS), 1, 1)
    own = logits[..., list(task.target_classes)].max(-1).values
    changed[..., task.concept] -= (gammas[:, None, None] * own).flatten(0, 1)
    return changed


def _intervals(hits: dict[tuple, dict[str, list[Tensor]]], materials: Materials) -> list[dict[str, Any]]:
    """Mean and bootstrap interval of each outcome, over pairs, seeds and images."""
    rows = []
    for identity, outcomes in hits.items():
        for name, of_pairs in outcomes.items():
            shares = torch.stack(of_pairs).mean(0)
            draw = torch.Generator().manual_seed(child_seed(materials.seed, "bootstrap", *map(str, identity), name))
            low, high = metrics.bootstrap_interval(shares, draw, n_resamples=materials.settings.bootstrap)
            mean = shares.double().mean().item()
            rows.append(dict(identity) | {"metric": name, "mean": mean, "low": low, "high": high})
    return rows
