"""SAEs that are done while others of their job are not, kept beside the job's outputs: Snakemake deletes those of a job
that fails."""

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from saeflow import __version__
from saeflow.config.saes import SAEs
from saeflow.reproduce import child_seed, digest_of
from saeflow.sae import formats
from saeflow.sae.sharing import Key
from saeflow.sae.stack import Member
from saeflow.sae.trainer import TrainedSAE

log = logging.getLogger(__name__)

_CURVES = "curves.safetensors"


class Finished:
    """Folders of SAEs in SAELens's format, with their curves and a digest of all that the SAE follows from.

    That is the whole group of `saeflow.sae.sharing.groups`, whose members show in one another's last bits.

    Arguments:
        folders: of each SAE; of one that is not in it nothing is kept.
        stores: identities of the stores.
        saes: variants and training.
        seed: root of all draws.
        device: where they are trained.
    """

    def __init__(
        self,
        folders: Mapping[Key, Path],
        stores: Sequence[str],
        saes: SAEs,
        seed: int,
        device: torch.device | str,
    ) -> None:
        self._folders, self._stores, self._saes, self._seed = folders, stores, saes, seed
        self._made_by = [__version__, torch.__version__, str(device), torch.get_float32_matmul_precision()]

    def keep(self, key: Key, group: Sequence[Key], result: TrainedSAE) -> None:
        """Write an SAE; it is there whole or not at all."""
        if key not in self._folders:
            return
        folder = self._folders[key]
        partial = folder.with_name(f"{folder.name}.partial")
        member = {"name": result.member.name, "spec": result.member.spec.model_dump(mode="json")}
        formats.save(result.sae, partial, {"digest": self._digest(group), "member": member})
        save_file(
            {name: torch.tensor(values, dtype=torch.float64) for name, values in result.curves.items()},
            partial / _CURVES,
        )
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)

    def take(self, group: Sequence[Key]) -> dict[Key, TrainedSAE]:
        """The SAEs of a group, if all of them were kept and nothing that they follow from has changed."""
        if not all(key in self._folders and self._folders[key].is_dir() for key in group):
            return {}
        digest, found = self._digest(group), {}
        for key in group:
            folder = self._folders[key]
            try:
                sae = formats.load(folder, dtype=None)
                curves = {name: values.tolist() for name, values in load_file(folder / _CURVES).items()}
            except (formats.FormatError, OSError, SafetensorError) as error:
                log.warning("%s: %s; trained anew", folder, error)
                return {}
            if sae.metadata.get("digest") != digest:
                log.warning("%s: of other settings or activations; trained anew", folder)
                return {}
            member, spec = sae.metadata["member"], type(self._saes.variants[key.variant])
            sae.metadata = {}
            seed = child_seed(self._seed, "sae", key.seed)
            found[key] = TrainedSAE(
                Member(member["name"], spec.model_validate(member["spec"]), seed, key.store), sae, curves
            )
            log.info("%s: taken from %s", key, folder)
        return found

    def clear(self) -> None:
        """Remove what is kept."""
        for folder in self._folders.values():
            shutil.rmtree(folder, ignore_errors=True)

    def _digest(self, group: Sequence[Key]) -> str:
        return digest_of(
            {
                "group": [[key.store, key.variant, key.seed] for key in group],
                "variants": {key.variant: self._saes.variants[key.variant].model_dump(mode="json") for key in group},
                "training": self._saes.training.model_dump(mode="json", exclude={"checkpoint_steps"}),
                "stores": [self._stores[i] for i in sorted({key.store for key in group})],
                "seed": self._seed,
                "made_by": self._made_by,
            }
        )
