"""Members of one variant and size that are trained as one: every tensor has a leading member axis."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from saeflow import tracking
from saeflow.config.saes import Gated, JumpReLU, ReLU, SparseAutoencoder, TopK, Training
from saeflow.reproduce import child_seed
from saeflow.sae import architectures
from saeflow.sae.dead import DeadLatents, FiringCounter, resample
from saeflow.sae.gradients import Gradients, mean_of
from saeflow.sae.initialization import Normalization, initial_parameters
from saeflow.sae.objectives import BatchTopK, Objective, objective_of
from saeflow.sae.optimizer import Adam, learning_rate, penalty_warmup

log = logging.getLogger(__name__)

# Above this share of active latents dense products are faster. CPU, one thread, 512 -> 4096, batch 4096: the sparse
# route takes 0.26 of the dense one's time at 1 % active, 0.42 at 5 %, 0.72 at 12 %, 1.1 at 20 %; smaller SAEs break
# even at 10 to 25 %. With products in bfloat16 (AMX) it takes 0.52 at 1 %, 1.1 at 4 %; smaller SAEs break even at 10 %.
# H200, 768 -> 24576, batch 2048: in float32 it takes 0.4 to 0.5 at 1/768 and 0.6 to 0.75 at 1/96; in tf32, whose
# products are five times faster, TopK breaks even at about 1/400 and BatchTopK at 1/1500.
_DENSE_SHARE = {"cpu": 0.12, "cuda": 1 / 64}
_DENSE_SHARE_FAST = {"cpu": 0.05, "cuda": 1 / 500}
# Steps between looks at what needs the host: which latents are dead, and which route is faster.
_REFRESH = 16
_THRESHOLD_DECAY = 0.99


@dataclass(frozen=True)
class Member:
    """One SAE to train.

    Arguments:
        name: in logs and errors.
        spec: variant and its settings; a penalty must be given.
        seed: of its own draws.
        store: which of the stores it is trained on.
        group: only members of one group are stacked.
    """

    name: str
    spec: SparseAutoencoder
    seed: int
    store: int = 0
    group: int = 0


@runtime_checkable
class Splice(Protocol):
    """A loss of the model's output with reconstructions spliced in."""

    def __call__(
        self, x_hat: Float[Tensor, "m b d_in"], x: Float[Tensor, "m b d_in"], members: Sequence[Member]
    ) -> tuple[Float[Tensor, " m"], Float[Tensor, "m b d_in"]]:
        """Loss of each member, a mean over the batch, and its gradient with respect to x_hat.

        Called with gradients off; an implementation that asks autograd turns them on (`torch.enable_grad`).

        Arguments:
            x_hat: reconstructions, in the stores' own units; not to be kept.
            x: what was reconstructed.
            members: whose they are.
        """
        ...


class Stack:
    """Parameters, optimizer and counters of m members.

    Arguments:
        members: of one variant, d_in and d_sae.
        stores: activation stores that `Member.store` counts.
        normalizations: by the number of the store.
        splice: loss for members with `splice_kl`.
    """

    def __init__(
        self,
        members: Sequence[Member],
        stores: Sequence[Any],
        normalizations: Mapping[int, Normalization],
        training: Training,
        *,
        device: torch.device | str = "cpu",
        splice: Splice | None = None,
    ) -> None:
        self.members = tuple(members)
        self.training = training
        self.specs = [member.spec for member in members]
        self.normalizations = [normalizations[member.store] for member in members]
        parameters = self._initial_parameters(stores, device)
        self.objective: Objective = objective_of(self.specs[0])(self.specs, parameters)
        self.optimizer = Adam(parameters, training.second_moment_of(self.specs[0]))
        m, d_sae, self.d_in = parameters["W_dec"].shape
        self.counter = FiringCounter(m, d_sae, training.dead_after, device)
        self.revival = self.specs[0].dead_latents
        self.revived = torch.zeros(m, d_sae, dtype=torch.bool, device=device)
        self._dead: DeadLatents | None = None
        self._auxk = parameters["W_dec"].new_tensor([spec.auxk_coefficient for spec in self.specs])
        self._generators = [torch.Generator().manual_seed(child_seed(member.seed, "resample")) for member in members]
        self.splice = splice if any(spec.splice_kl for spec in self.specs) else None
        self._splice_weight = parameters["W_dec"].new_tensor([spec.splice_kl for spec in self.specs])
        self._mean = torch.stack([n.mean for n in self.normalizations])[:, None].to(device)
        self._scale = parameters["W_dec"].new_tensor([n.scale for n in self.normalizations])[:, None, None]
        self.threshold = parameters["W_dec"].new_zeros(m)
        k = getattr(self.specs[0], "k", None)
        share = 1.0 if k is None else sum(spec.k for spec in self.specs) / (m * d_sae)
        self._dense_share = _dense_share(torch.device(device))
        self.dense = share > self._dense_share
        self.records: list[tuple[int, Tensor]] = []
        self._parts = training.accumulate

    def _initial_parameters(self, stores: Sequence[Any], device: torch.device | str) -> dict[str, Tensor]:
        drawn = [
            initial_parameters(member.spec, stores[member.store], normalization, self.training, member.seed)
            for member, normalization in zip(self.members, self.normalizations, strict=True)
        ]
        return {name: torch.stack([one.pop(name) for one in drawn]).to(device) for name in list(drawn[0])}

    def step(self, x: Float[Tensor, "m b d_in"], step: int, record: bool = False) -> Gradients:
        """Train on one batch of normalised activations; keep a line of the curves if asked to."""
        refresh = step % _REFRESH == 0
        if refresh and self.revival == "auxk":
            self._set_dead(self.counter.dead)
        gradients = self._gradients(x, step, measure=record or (refresh and self.objective.has_penalty))
        if record:
            self.records.append((step, self._line(gradients, x)))
            names = (member.name for member in self.members)
            tracking.stacked(names, step, self.COLUMNS, self.records[-1][1])
        centered = x - self.objective.parameters["b_dec"][:, None] if self._resamples_at(step) else None
        self.optimizer.step(gradients, learning_rate(self.training, step))
        self.counter.update(gradients.fired, x.shape[1])
        if gradients.threshold is not None:
            keep = _THRESHOLD_DECAY if step else 0.0
            self.threshold.mul_(keep).add_(gradients.threshold, alpha=1 - keep)
        if centered is not None:
            self._resample(gradients.error, centered)
        if refresh and self.objective.has_penalty:
            self._choose_route(float(gradients.l0.mean()))
        return gradients

    def _gradients(self, x: Tensor, step: int, measure: bool) -> Gradients:
        """Of one batch, in as many parts as were asked for, or as memory wants."""
        while True:
            try:
                if self._parts == 1:
                    return self._gradients_of(x, step, measure)
                return mean_of(self._gradients_of(part, step, measure) for part in x.chunk(self._parts, dim=1))
            except torch.OutOfMemoryError:
                if x.shape[1] % (2 * self._parts):
                    raise
                self._parts *= 2
            self.objective.release()
            torch.cuda.empty_cache()
            log.warning(
                "%s: out of memory at step %d; batches of %d in %d parts from here on. With `training.accumulate: %d` "
                "they are so from the start, and the bytes do not depend on the card's memory",
                self.members[0].name,
                step,
                x.shape[1],
                self._parts,
                self._parts,
            )

    def _gradients_of(self, x: Tensor, step: int, measure: bool) -> Gradients:
        return self.objective.gradients(
            x,
            dense=self.dense,
            warmup=penalty_warmup(self.training, step),
            dead=self._dead,
            splice=None if self.splice is None else self._splice_of(x),
            measure=measure,
        )

    def _choose_route(self, l0: float) -> None:
        self.dense = l0 / self.objective.d_sae > self._dense_share
        if not self.dense:
            self.objective.release_dense()

    def _set_dead(self, dead: Tensor) -> None:
        self.revived = dead
        self._dead = DeadLatents(dead, max(1, self.d_in // 2), self._auxk) if bool(dead.any()) else None

    def _splice_of(self, x: Tensor):
        raw = x / self._scale + self._mean

        def spliced(x_hat: Tensor) -> tuple[Tensor, Tensor]:
            loss, gradient = self.splice(x_hat / self._scale + self._mean, raw, self.members)
            weight = self._splice_weight
            return loss * weight, gradient * (weight[:, None, None] / self._scale)

        return spliced

    def _resamples_at(self, step: int) -> bool:
        """Every `dead_after` vectors, but not while the step size falls."""
        every = max(1, self.training.dead_after // self.training.batch_size)
        last = self.training.steps * (1 - self.training.decay_share)
        return self.revival == "resample" and (step + 1) % every == 0 and step + 1 < last

    def _resample(self, error: Tensor, centered: Tensor) -> None:
        parameters = self.objective.parameters
        for i, dead in enumerate(self.counter.dead):
            # No vector can be drawn by the loss of a member that diverged.
            if not bool(dead.any()) or not bool(error[i].isfinite().all()):
                continue
            length, generator = self.objective.resampled_length, self._generators[i]
            latents, *rows = resample(dead, error[i], centered[i], parameters["W_enc_T"][i], length, generator)
            parameters["W_dec"][i, latents], parameters["W_enc_T"][i, latents] = rows
            vectors = self.objective.initial_vectors(self.specs[i])
            for name, value in vectors.items():
                parameters[name][i, latents] = value
            for name in ("W_dec", "W_enc_T", *vectors):
                self.optimizer.reset(name, i, latents)
            self.counter.since[i, latents] = 0

    # What is kept of the training.

    COLUMNS = ("loss", "reconstruction", "explained_variance", "l0", "dead_share")

    def _line(self, gradients: Gradients, x: Tensor) -> Float[Tensor, "columns m"]:
        """One line of the curves; stays on the device."""
        error = gradients.error.square().sum((1, 2))
        variance = (x - x.mean(1, keepdim=True)).square().sum((1, 2))
        loss = sum(gradients.terms.values())
        dead = self.counter.dead.to(error.dtype).mean(1)
        return torch.stack([loss, error / x.shape[1], 1 - error / variance, gradients.l0, dead])

    @property
    def diverged(self) -> bool:
        """Whether the loss last recorded is finite for no member."""
        return not bool(self.records[-1][1][self.COLUMNS.index("loss")].isfinite().any())

    def curves(self, i: int) -> dict[str, list[float]]:
        """Curves of one member: `step` and COLUMNS."""
        lines = [line[:, i].tolist() for _, line in self.records]
        columns = zip(*lines, strict=True) if lines else [()] * len(self.COLUMNS)
        curves = {name: list(column) for name, column in zip(self.COLUMNS, columns, strict=True)}
        return {"step": [step for step, _ in self.records], **curves}

    def sae(self, i: int) -> architectures.SparseAutoencoder:
        """One member as it is used: on the CPU, in the store's own units."""
        p = {name: tensor[i].detach().cpu().clone() for name, tensor in self.objective.parameters.items()}
        shared = {"W_enc": p["W_enc_T"].T.contiguous(), "W_dec": p["W_dec"], "b_dec": p["b_dec"]}
        match self.specs[i]:
            case ReLU():
                sae = architectures.ReLU(**shared, b_enc=p["b_enc"])
            case TopK(k=k):
                sae = architectures.TopK(**shared, b_enc=p["b_enc"], k=k)
            case Gated():
                sae = architectures.Gated(**shared, b_gate=p["b_gate"], b_mag=p["b_mag"], r_mag=p["r_mag"])
            case JumpReLU():
                sae = architectures.JumpReLU(**shared, b_enc=p["b_enc"], threshold=p["log_threshold"].exp())
            case _:
                threshold = self.threshold[i].cpu().expand_as(p["b_enc"]).clone()
                sae = architectures.JumpReLU(**shared, b_enc=p["b_enc"], threshold=threshold)
        normalization = self.normalizations[i]
        return sae.fold_normalization(normalization.mean, normalization.scale)

    # Checkpoints.

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and, for JSON, numbers that a resumed training needs."""
        tensors = {f"parameters.{name}": t for name, t in self.objective.parameters.items()}
        tensors |= {f"optimizer.{name}": t for name, t in self.optimizer.state().items()}
        tensors |= {"since": self.counter.since, "revived": self.revived, "threshold": self.threshold}
        tensors |= {f"generator.{i}": g.get_state() for i, g in enumerate(self._generators)}
        if self.records:
            tensors["records"] = torch.stack([line for _, line in self.records])
        if isinstance(self.objective, BatchTopK) and self.objective.threshold is not None:
            tensors["last_threshold"] = self.objective.threshold
        return tensors, {"dense": self.dense, "recorded": [step for step, _ in self.records]}

    def load_state(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Go to where another stack of the same members was."""
        for name, tensor in self.objective.parameters.items():
            tensor.copy_(tensors[f"parameters.{name}"])
        prefix = "optimizer."
        self.optimizer.load_state({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
        self.counter.since.copy_(tensors["since"])
        self.threshold.copy_(tensors["threshold"])
        device = self.threshold.device
        if self.revival == "auxk":
            self._set_dead(tensors["revived"].to(device))
        for i, generator in enumerate(self._generators):
            generator.set_state(tensors[f"generator.{i}"].clone())
        lines = tensors["records"].to(device) if numbers["recorded"] else ()
        self.records = list(zip(numbers["recorded"], lines, strict=True))
        if "last_threshold" in tensors:
            self.objective.threshold = tensors["last_threshold"].to(device)
        self.dense = numbers["dense"]


def _dense_share(device: torch.device) -> float:
    fast = torch.get_float32_matmul_precision() != "highest"
    return (_DENSE_SHARE_FAST if fast else _DENSE_SHARE)[device.type]
