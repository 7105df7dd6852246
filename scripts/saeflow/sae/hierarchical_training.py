"""Training of hierarchical SAEs as one stack: from random or a teacher's directions, in two stages, resumable."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from saeflow import tracking
from saeflow.reproduce import child_seed
from saeflow.sae.health import DivergedError
from saeflow.sae.hierarchical import DECODER, HierarchicalSAEs, losses
from saeflow.sae.optimizer import remove_parallel

_BETAS = (0.9, 0.999)
_UNIT_ROWS = ("decoder", "up", "child_decoder")


class Directions(NamedTuple):
    """What a teacher says, in the coordinates of the activations."""

    parents: Float[Tensor, "n d"]
    deltas: Float[Tensor, "c d"]
    """Offset of each child from its parent."""
    parent_of: Int[Tensor, " c"]


@dataclass(frozen=True)
class Member:
    """One SAE of a stack.

    Arguments:
        name: of its arm.
        seed: of its start and of the order of the activations; members of equal seed see the same batches.
        table: which of the activation tables it is trained on.
        teacher: directions that the first parents start from.
        frozen_steps: length of stage A, in which the decoder is kept as it starts.
    """

    name: str
    seed: int
    table: str
    teacher: Directions | None = None
    frozen_steps: int = 0


@dataclass(frozen=True)
class Shape:
    """Sizes that the members of a stack share; no children make a flat SAE."""

    parents: int
    children: int
    rank: int
    k: int


@dataclass(frozen=True)
class Objective:
    """Weights of the terms of `saeflow.sae.hierarchical.Losses`; the reconstruction's is 1."""

    top: float = 0.1
    sparsity: float = 1e-3
    biorthogonality: float = 0.1
    causal: float = 0.1


@dataclass(frozen=True)
class Schedule:
    """How a stack is trained: Adam with a linear rise, then a constant step size, so that a snapshot at any step is
    what a training of that length gives."""

    steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int
    record_every: int = 50


def unit(x: Tensor) -> Tensor:
    """Rows over their lengths."""
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp(min=1e-12)


def initial(shape: Shape, d: int, member: Member) -> dict[str, Tensor]:
    """Parameters of one member: unit rows, encoders equal to decoders, a teacher's directions in the first parents.

    A parent's subspace is spanned by its children's offsets: their right singular vectors, then random ones.

    Raises:
        ValueError: the teacher has more parents, or more children of one parent, than the SAE.
    """
    generator = torch.Generator().manual_seed(child_seed(member.seed, "hierarchical", "start"))

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    decoder = unit(normal(shape.parents, d))
    up = torch.linalg.qr(normal(shape.parents, d, shape.rank)).Q.mT if shape.children else None
    child_decoder = unit(normal(shape.parents, shape.children, shape.rank)) if shape.children else None
    if member.teacher is not None:
        n = len(member.teacher.parents)
        most = int(torch.bincount(member.teacher.parent_of).max())
        if n > shape.parents or most > shape.children:
            raise ValueError(
                f"the teacher has {n} parents with up to {most} children, the SAE {shape.parents} and {shape.children}"
            )
        decoder[:n] = unit(member.teacher.parents.float())
        for j in range(n):
            deltas = unit(member.teacher.deltas[member.teacher.parent_of == j].float())
            basis = torch.linalg.svd(deltas, full_matrices=False).Vh[: shape.rank]
            up[j] = torch.linalg.qr(torch.cat([basis, up[j]]).mT).Q.mT[: shape.rank]
            child_decoder[j, : len(deltas)] = unit(deltas @ up[j].mT)
    parameters = {
        "encoder": decoder.clone(),
        "decoder": decoder,
        "encoder_bias": torch.zeros(shape.parents),
        "bias": torch.zeros(d),
    }
    if shape.children:
        parameters |= {"down": up.contiguous().clone(), "up": up.contiguous()}
        parameters |= {"child_encoder": child_decoder.clone(), "child_decoder": child_decoder}
    return parameters


class Trainer:
    """A stack in training.

    Arguments:
        members: of one shape.
        tables: activations by name, centred and scaled to mean squared length d.  Shape [n, d] each, n the same.
    """

    COLUMNS = ("loss", "reconstruction", "top", "sparsity", "biorthogonality", "causal")

    def __init__(
        self,
        members: Sequence[Member],
        shape: Shape,
        tables: Mapping[str, Tensor],
        objective: Objective,
        schedule: Schedule,
        device: str = "cpu",
    ) -> None:
        self.members, self.objective, self.schedule, self.shape = list(members), objective, schedule, shape
        self.tables, self.device = tables, torch.device(device)
        d = next(iter(tables.values())).shape[1]
        drawn = [initial(shape, d, member) for member in members]
        stacked = {name: torch.stack([one[name] for one in drawn]).to(device) for name in drawn[0]}
        self.saes = HierarchicalSAEs(stacked, shape.k)
        self.first = {name: torch.zeros_like(t) for name, t in stacked.items()}
        self.second = {name: torch.zeros_like(t) for name, t in stacked.items()}
        self.count = torch.zeros((), device=device)
        self.done = 0
        self.records: list[tuple[int, Tensor]] = []
        self.kept: dict[int, dict[str, Tensor]] = {}
        """Parameters at steps that snapshots were taken at, for a training with checkpoints."""
        self._order: dict[tuple[int, int], Tensor] = {}

    def _batch(self) -> Float[Tensor, "m b d"]:
        """The next rows of each member: a walk through permutations, each drawn from the seed and its number alone."""
        n, size = len(next(iter(self.tables.values()))), self.schedule.batch_size
        places = torch.arange(self.done * size, (self.done + 1) * size)
        epochs = range(int(places[0]) // n, int(places[-1]) // n + 1)
        self._order = {key: order for key, order in self._order.items() if key[1] in epochs}
        drawn: dict[tuple[int, str], Tensor] = {}
        for member in self.members:
            if (member.seed, member.table) in drawn:
                continue
            for epoch in epochs:
                if (member.seed, epoch) not in self._order:
                    generator = torch.Generator().manual_seed(child_seed(member.seed, "hierarchical", "rows", epoch))
                    self._order[member.seed, epoch] = torch.randperm(n, generator=generator)
            rows = [self._order[member.seed, epoch][places[places // n == epoch] % n] for epoch in epochs]
            drawn[member.seed, member.table] = self.tables[member.table].index_select(0, torch.cat(rows))
        return torch.stack([drawn[member.seed, member.table] for member in self.members]).to(self.device)

    def step(self) -> None:
        """Train on one batch."""
        x = self._batch()
        parameters = self.saes.parameters
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in parameters.items()}
        saes = HierarchicalSAEs(leaves, self.saes.k)
        codes, x_hat = saes.forward(x)
        terms = losses(saes, x, codes, x_hat)
        weights = self.objective
        loss = terms.reconstruction + weights.top * terms.top + weights.sparsity * terms.sparsity
        loss = loss + weights.biorthogonality * terms.biorthogonality + weights.causal * terms.causal
        names = list(leaves)
        found = torch.autograd.grad(loss.sum(), list(leaves.values()), allow_unused=True)
        gradients = {n: torch.zeros_like(leaves[n]) if g is None else g for n, g in zip(names, found, strict=True)}
        if self.done % self.schedule.record_every == 0:
            self.records.append((self.done, torch.stack([loss, *terms]).detach()))
            names = (f"{member.name}, seed {member.seed}" for member in self.members)
            tracking.stacked(names, self.done, self.COLUMNS, self.records[-1][1])
        self._update(gradients)
        self.done += 1

    @torch.no_grad()
    def _update(self, gradients: dict[str, Tensor]) -> None:
        parameters = self.saes.parameters
        free = torch.tensor([self.done >= member.frozen_steps for member in self.members], device=self.device)
        for name in _UNIT_ROWS:
            if name in gradients:
                d = parameters[name].shape[-1]
                g = gradients[name] = gradients[name].contiguous()
                remove_parallel(g.view(-1, d), parameters[name].view(-1, d))
        for name in DECODER:
            if name in gradients:
                gradients[name] = gradients[name] * free.view(-1, *[1] * (gradients[name].dim() - 1))
        schedule = self.schedule
        rise = min(1.0, (self.done + 1) / schedule.warmup_steps) if schedule.warmup_steps else 1.0
        self.count += 1
        names = list(parameters)
        torch._fused_adam_(
            [parameters[name] for name in names],
            [gradients[name].contiguous() for name in names],
            [self.first[name] for name in names],
            [self.second[name] for name in names],
            [],
            [self.count] * len(names),
            lr=schedule.learning_rate * rise,
            beta1=_BETAS[0],
            beta2=_BETAS[1],
            weight_decay=0.0,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
        )
        for name in _UNIT_ROWS:
            if name in parameters:
                lengths = torch.linalg.vector_norm(parameters[name], dim=-1, keepdim=True).clamp(min=1e-12)
                # Rows that stage A keeps have their length already: dividing would change their last bits.
                kept = torch.where(free.view(-1, *[1] * (lengths.dim() - 1)), lengths, torch.ones_like(lengths))
                parameters[name].div_(kept)

    def snapshots(
        self, steps: Sequence[int], checkpoint_steps: int = 0, checkpoint: Path | None = None
    ) -> Iterator[tuple[int, HierarchicalSAEs]]:
        """Train to the end, and give the stack at some steps, those before a checkpoint as well.

        Arguments:
            steps: ascending.
            checkpoint_steps: steps between checkpoints; 0 writes none.
            checkpoint: where they go; the stack's snapshots so far are in them.
        Raises:
            DivergedError: parameters that are not finite at one of the steps; names the SAE.
        """
        for step in [step for step in steps if step in self.kept]:
            now, self.saes.parameters = self.saes.parameters, self.kept[step]
            yield step, self.saes
            self.saes.parameters = now
        while self.done < self.schedule.steps:
            self.step()
            if self.done in steps:
                self._check_finite()
                if checkpoint_steps:
                    self.kept[self.done] = {n: t.clone() for n, t in self.saes.parameters.items()}
                yield self.done, self.saes
            if checkpoint_steps and self.done % checkpoint_steps == 0:
                self.save(checkpoint)

    def _check_finite(self) -> None:
        smaller = (
            f"learning_rate ({self.schedule.learning_rate:.3g}) or more warmup_steps ({self.schedule.warmup_steps})"
        )
        for i, member in enumerate(self.members):
            if not all(bool(tensor[i].isfinite().all()) for tensor in self.saes.parameters.values()):
                what = f"training diverged, its weights are not finite after step {self.done}"
                raise DivergedError(f"{member.name}: {what}; try a smaller {smaller}")

    @property
    def signature(self) -> str:
        """What a checkpoint must agree with: members, shape, weights, schedule, and digests of what they start from."""
        digest = hashlib.sha256(repr((self.shape, self.objective, self.schedule)).encode())
        for member in self.members:
            digest.update(repr((member.name, member.seed, member.table, member.frozen_steps)).encode())
            for tensor in member.teacher or ():
                digest.update(tensor.numpy().tobytes())
        for name in sorted(self.tables):
            digest.update(self.tables[name].numpy().tobytes())
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write a checkpoint."""
        tensors = {f"parameters.{n}": t for n, t in self.saes.parameters.items()}
        tensors |= {f"first.{n}": t for n, t in self.first.items()} | {f"second.{n}": t for n, t in self.second.items()}
        tensors |= {"count": self.count, "done": torch.tensor(self.done)}
        tensors |= {f"record.{step}": line for step, line in self.records}
        tensors |= {f"kept.{step}.{n}": t for step, kept in self.kept.items() for n, t in kept.items()}
        # Under another name until it is whole: a job may be killed while it writes.
        unfinished = path.with_name(f"{path.name}.unfinished")
        save_file(
            {name: tensor.contiguous().cpu() for name, tensor in tensors.items()},
            unfinished,
            {"signature": self.signature},
        )
        unfinished.replace(path)

    def resume(self, path: Path) -> bool:
        """Go to where a checkpoint was; False, and nothing happens, if it is of another stack."""
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("signature") != self.signature:
                return False
        tensors = load_file(path)
        for prefix, store in (("parameters", self.saes.parameters), ("first", self.first), ("second", self.second)):
            for name, tensor in store.items():
                tensor.copy_(tensors[f"{prefix}.{name}"])
        self.count.copy_(tensors["count"])
        self.done = int(tensors["done"])
        for name in tensors:
            if name.startswith("kept."):
                _, step, parameter = name.split(".")
                self.kept.setdefault(int(step), {})[parameter] = tensors[name].to(self.device)
        recorded = sorted(int(name.removeprefix("record.")) for name in tensors if name.startswith("record."))
        self.records = [(step, tensors[f"record.{step}"].to(self.device)) for step in recorded]
        return True
