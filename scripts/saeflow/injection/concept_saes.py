"""The sparse autoencoders whose latents are the concept spaces: trained per network, kept in one file."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from saeflow.activations import ActivationStore
from saeflow.config.injection import ConceptSpaces
from saeflow.config.saes import BatchTopK, Training
from saeflow.datasets.images import ImageSplit
from saeflow.injection.forward import Forward
from saeflow.models.classifiers import StackedClassifier
from saeflow.reproduce import child_seed
from saeflow.sae import health, trainer
from saeflow.sae.architectures import ARCHITECTURES, JumpReLU, SparseAutoencoder
from saeflow.sae.stack import Member

SITE = "last.pre"
"""Hook point whose activations they are trained on."""

Key = tuple[str, str, int, int]
"""Role, architecture, d_sae and k."""

_SPACES = "concept_saes"


class ConceptSAEError(ValueError):
    """A file that holds no concept SAEs; names it and what is wrong."""


def sweep(spaces: ConceptSpaces) -> list[tuple[int, int]]:
    """[d_sae, k] of both sweeps, without the base."""
    asked = [(d_sae, spaces.k) for d_sae in spaces.sizes] + [(spaces.d_sae, k) for k in spaces.sparsities]
    return [point for point in dict.fromkeys(asked) if point != (spaces.d_sae, spaces.k)]


def train(
    networks: Mapping[str, Mapping[str, StackedClassifier]],
    classes: Mapping[str, Sequence[int]],
    images: ImageSplit,
    spaces: ConceptSpaces,
    *,
    swept: Sequence[str],
    seed: int,
    device: torch.device | str = "cpu",
) -> dict[Key, list[SparseAutoencoder]]:
    """One BatchTopK SAE per network at `SITE`, on the images of the network's own classes.

    All networks get the base size. The sizes and sparsities of the sweeps are trained for the first
    `spaces.sweep_architectures` architectures of `swept` roles only.

    Arguments:
        networks: stacks by role and architecture.
        classes: labels of the images that each role's networks see.
        images: training images.
        swept: roles.
        seed: root of all draws.
    Returns:
        SAEs by key, one per member.
    Raises:
        DivergedError: a training whose loss or weights are not finite.
    """
    forward = Forward(device)
    stores: dict[tuple[str, str], list[ActivationStore]] = {}
    for role, of_role in networks.items():
        own = torch.from_numpy(images[np.isin(images.labels, classes[role])].inputs())
        for architecture, network in of_role.items():
            values = forward(network, own, SITE)
            stores[role, architecture] = [
                ActivationStore.from_array(rows.contiguous(), metadata={"network": f"{role}-{architecture}, {i}"})
                for i, rows in enumerate(values)
            ]
    members = [(key, i, spaces.d_sae, spaces.k) for key, of_key in stores.items() for i in range(len(of_key))]
    for role in swept:
        for architecture in list(networks[role])[: spaces.sweep_architectures]:
            n_members = len(stores[role, architecture])
            members += [((role, architecture), i, *point) for point in sweep(spaces) for i in range(n_members)]
    return _trained(stores, members, spaces.training, child_seed(seed, "injection", "concept SAEs"), device)


def _trained(
    stores: Mapping[tuple[str, str], Sequence[ActivationStore]],
    wanted: Sequence[tuple[tuple[str, str], int, int, int]],
    training: Training,
    seed: int,
    device: torch.device | str,
) -> dict[Key, list[SparseAutoencoder]]:
    """SAEs of [role and architecture, number of the network, d_sae, k], trained together; thresholds as trained."""
    order = {
        (key, i): n for n, (key, i) in enumerate((k, i) for k, of_key in stores.items() for i in range(len(of_key)))
    }
    members = [
        Member(
            f"{'-'.join(key)}, network {i}, d_sae {d_sae}, k {k}",
            BatchTopK(architecture="batchtopk", d_sae=d_sae, k=k),
            child_seed(seed, *key, i),
            order[key, i],
        )
        for key, i, d_sae, k in wanted
    ]
    rows = [store for of_key in stores.values() for store in of_key]
    results = trainer.train(rows, members, training, seed=seed, device=device)
    for result in results:
        health.check_finite(result, training)
    found: dict[Key, list[SparseAutoencoder]] = {}
    # Networks of a key come in their own order.
    for (key, _, d_sae, k), result in zip(wanted, results, strict=True):
        found.setdefault((*key, d_sae, k), []).append(result.sae)
    return dict(sorted(found.items()))


def save(saes: Mapping[Key, Sequence[SparseAutoencoder]], path: Path) -> None:
    """Write all of them into one safetensors file, members on the leading axis; equal content is equal bytes."""
    tensors: dict[str, Tensor] = {}
    spaces = []
    for key in sorted(saes):
        role, architecture, d_sae, k = key
        members = saes[key]
        names = {"role": role, "architecture": architecture, "d_sae": d_sae, "k": k, "kind": members[0].architecture}
        spaces.append(names)
        for name in members[0].shapes:
            tensors[f"{_prefix(key)}.{name}"] = torch.stack([getattr(sae, name).detach().cpu() for sae in members])
    save_file(tensors, path, {_SPACES: json.dumps(spaces, sort_keys=True)})


def load(path: Path, device: torch.device | str = "cpu") -> dict[Key, list[SparseAutoencoder]]:
    """What `save` wrote.

    Raises:
        ConceptSAEError: the file is missing, damaged or no such file.
    """
    found = {}
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            for names in json.loads((file.metadata() or {})[_SPACES]):
                key = names["role"], names["architecture"], names["d_sae"], names["k"]
                kind = ARCHITECTURES[names["kind"]]
                stacks = {name: file.get_tensor(f"{_prefix(key)}.{name}") for name in kind.shapes}
                n_members = len(stacks["W_enc"])
                found[key] = [kind(**{name: stack[i] for name, stack in stacks.items()}) for i in range(n_members)]
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ConceptSAEError(f"{path}: no concept SAEs of this project: {error}") from None
    return found


def _prefix(key: Key) -> str:
    return ".".join(map(str, key))


class ConceptSpace:
    """z = relu(p) [p > threshold];  p = (h - b_dec) W_enc + b_enc;  h = z W_dec + b_dec;  for all members at once.

    Arguments:
        saes: of equal size, one per member.
    """

    def __init__(self, saes: Sequence[SparseAutoencoder]) -> None:
        unlike = sorted({type(sae).__name__ for sae in saes} - {JumpReLU.__name__})
        if unlike:
            raise TypeError(f"concept SAEs: {', '.join(unlike)} among them, expected {JumpReLU.__name__}")
        self._w_enc, self._w_dec, self._b_enc, self._b_dec, self._threshold = (
            torch.stack([getattr(sae, name) for sae in saes])
            for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
        )

    def encode(self, h: Float[Tensor, "m n d"]) -> Float[Tensor, "m n d_sae"]:
        """Latents."""
        p = torch.baddbmm(self._b_enc[:, None], h - self._b_dec[:, None], self._w_enc)
        # Compared into floats: a product with booleans costs a CPU five times as much.
        return p.relu().mul_(p.gt_(self._threshold[:, None]))

    def decode(self, z: Float[Tensor, "m n d_sae"]) -> Float[Tensor, "m n d"]:
        """Activations."""
        return torch.baddbmm(self._b_dec[:, None], z, self._w_dec)
