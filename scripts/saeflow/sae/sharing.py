"""Which SAEs of a study are trained as one stack, and which job trains them.

Stacks follow from the study and the kind of device, not from the number of jobs, and a job has whole stacks: so a job
computes for each of its SAEs what a single job for all would. What a stack holds shows in the last bits: vectorised
loops end elsewhere, TopK members of unlike k are selected by the largest, a penalised stack changes routes as one.

Torch is not imported, because the Snakefile asks as well.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import product

from saeflow.config.saes import SAEs, SparseAutoencoder

# Most rows times latents of all members of a stack. On one CPU thread, 24 SAEs stacked against one after another are 3
# to 4 times as fast for 64 -> 64, batch 128; 1.7 to 2.2 for 64 -> 128, batch 256; 1.1 to 1.3 for 128 -> 512 and
# 32 -> 512, batch 512, in stacks of 8. Larger stacks leave the cache: 1.0 there, and 0.8 for 128 -> 1024, batch 1024.
# H200, the same shapes: a step of one SAE takes 1.2 to 1.9 ms whatever its size, which is launching kernels; 24 stacked
# are 25 times and 96 stacked 65 to 110 times as fast as one after another, and no limit was seen up to there.
_STACK_SIZE = {"cpu": 1 << 21, "cuda": 1 << 26}
# Trainings of a search for a penalty: of one that starts from another's, and how many more where there is none.
_SEARCH, _GRID = 3, 4


@dataclass(frozen=True)
class Key:
    """Which SAE of a study."""

    store: int
    variant: str
    seed: int

    def __str__(self) -> str:
        return f"{self.variant}-s{self.seed}, store {self.store}"


def stacks(
    specs: Sequence[SparseAutoencoder], alike: Sequence[Hashable], batch_size: int, device: str
) -> list[list[int]]:
    """SAEs that are trained as one, by number: those of one variant and size, as many at a time as pays.

    Arguments:
        specs: of each SAE.
        alike: of each SAE; only those with equal ones are stacked.
        batch_size: rows per step.
        device: "cpu" or "cuda".
    """
    families: dict[tuple, list[int]] = {}
    for i, (spec, other) in enumerate(zip(specs, alike, strict=True)):
        key = (type(spec), spec.d_sae, spec.dead_latents, bool(spec.splice_kl), getattr(spec, "prefixes", ()))
        families.setdefault((*key, other), []).append(i)
    found = []
    for family in families.values():
        most = max(1, _STACK_SIZE[device] // (batch_size * specs[family[0]].d_sae))
        n_stacks = -(-len(family) // most)
        found += [family[i * len(family) // n_stacks : (i + 1) * len(family) // n_stacks] for i in range(n_stacks)]
    return found


def keys_of(saes: SAEs, n_stores: int) -> list[Key]:
    """All SAEs of a set of stores, in the study's order."""
    return [Key(*key) for key in product(range(n_stores), saes.variants, saes.seeds)]


def groups(saes: SAEs, n_stores: int, device: str) -> list[list[Key]]:
    """All SAEs of a set of stores of one width, by the stack that they are trained in.

    SAEs whose penalty is searched for are apart from those whose sparsity is given; at each round of the search only
    they are stacked with one another.
    """
    keys = keys_of(saes, n_stores)
    specs = [saes.variants[key.variant] for key in keys]
    found = stacks(specs, [is_searched(spec) for spec in specs], saes.training.batch_size, device)
    return [[keys[i] for i in stack] for stack in found]


def jobs(saes: SAEs, n_stores: int, device: str) -> list[list[Key]]:
    """SAEs of each of the `saes.shards` jobs, or fewer if there are fewer stacks; those of a job in the study's order.

    The costliest stack that is left goes to the job that has least to do, latents times trainings being the cost.
    """

    def cost(keys: Sequence[Key]) -> int:
        searched = {key.variant: is_searched(saes.variants[key.variant]) for key in keys}
        trainings = [(key.variant, _SEARCH if searched[key.variant] else 1) for key in keys]
        trainings += [(variant, _GRID) for variant in searched if searched[variant]]
        return sum(saes.variants[variant].d_sae * n for variant, n in trainings)

    left = sorted(groups(saes, n_stores, device), key=cost, reverse=True)
    found: list[list[Key]] = [[] for _ in range(min(saes.shards, len(left)))]
    for group in left:
        min(found, key=cost).extend(group)
    order = keys_of(saes, n_stores)
    return [sorted(keys, key=order.index) for keys in found]


def is_searched(spec: SparseAutoencoder) -> bool:
    """Whether the penalty of a variant is calibrated to a target L0."""
    return getattr(spec, "target_l0", None) is not None
