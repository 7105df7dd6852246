"""A package's files, read once and as often as checks ask for them; whatever is unreadable is one check's matter."""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from saeflow.publish.package import MANIFEST
from saeflow.sae import formats
from saeflow.sae.architectures import SparseAutoencoder


class BlockedError(Exception):
    """A file that cannot be used; `check` is the one that reports it, and all others that need it are skipped.

    Without a check it is no fault: the package has no such file, for the reason that the message says.
    """

    def __init__(self, check: str, problem: str) -> None:
        super().__init__(problem)
        self.check = check


class Package:
    """A package on disk.

    Arguments:
        folder: with `package.json`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """`package.json`."""
        content = self._json(MANIFEST, "manifest_is_readable")
        missing = {"model", "hook_point", "variant", "architecture", "d_in", "d_sae", "n_published", "neuronpedia"}
        missing |= {"formats", "files", "format"}
        missing -= set(content if isinstance(content, dict) else ())
        if missing:
            raise BlockedError("manifest_is_readable", f"{MANIFEST}: {', '.join(sorted(missing))} missing")
        return content

    def needs(self, name: str) -> None:
        """
        Raises:
            BlockedError: the manifest says that the package has no such format, and why.
        """
        reason = self.manifest["formats"].get(name, "")
        if reason is not None:
            raise BlockedError("", str(reason) or f"the package has no {name}")

    @cached_property
    def saelens_config(self) -> dict[str, Any]:
        return self._json("saelens/cfg.json", "saelens_config_is_readable")

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Tensors of the SAELens file as they are."""
        try:
            return load_file(self.folder / "saelens" / formats.WEIGHTS)
        except (SafetensorError, OSError) as error:
            raise BlockedError("saelens_loads", f"saelens/{formats.WEIGHTS}: {error}") from None

    @property
    def not_finite(self) -> str | None:
        """Which weights are NaN or infinite."""
        wrong = [name for name, tensor in self.tensors.items() if not tensor.isfinite().all()]
        return f"not finite: {', '.join(wrong)}" if wrong else None

    @property
    def other_dtype(self) -> str | None:
        """Which weights have another number type than the configuration states."""
        stated = str(self.saelens_config.get("dtype")).removeprefix("torch.")
        found = {name: str(t.dtype).removeprefix("torch.") for name, t in self.tensors.items()}
        wrong = {name: dtype for name, dtype in found.items() if dtype != stated}
        return f"cfg.json says {stated}, found {wrong}" if wrong else None

    @cached_property
    def sae(self) -> SparseAutoencoder:
        """The SAE, if its weights are numbers of the stated type."""
        _ = self.saelens_config
        for check, problem in (
            ("weights_are_finite", self.not_finite),
            ("weights_have_the_stated_dtype", self.other_dtype),
        ):
            if problem:
                raise BlockedError(check, problem)
        try:
            return formats.load(self.folder / "saelens")
        except (formats.FormatError, FileNotFoundError) as error:
            raise BlockedError("saelens_loads", str(error)) from None

    @cached_property
    def sparsify_folder(self) -> Path:
        self.needs("sparsify")
        found = [path for path in (self.folder / "sparsify").glob("*") if path.is_dir()]
        if len(found) != 1:
            raise BlockedError("sparsify_config_says_the_same", f"sparsify: {len(found)} folders, expected one")
        return found[0]

    @cached_property
    def sparsify_config(self) -> dict[str, Any]:
        name = self.sparsify_folder.relative_to(self.folder) / "cfg.json"
        return self._json(str(name), "sparsify_config_says_the_same")

    @cached_property
    def dictionary_config(self) -> dict[str, Any]:
        self.needs("dictionary_learning")
        content = self._json("dictionary_learning/config.json", "dictionary_config_says_the_same")
        if not isinstance(content.get("trainer"), dict):
            raise BlockedError("dictionary_config_says_the_same", "dictionary_learning/config.json: no trainer")
        return content

    @cached_property
    def dictionary_tensors(self) -> dict[str, Tensor]:
        """Content of `ae.pt`, which is loaded as plain tensors or not at all."""
        self.needs("dictionary_learning")
        check, name = "the_pickle_is_of_plain_tensors", "dictionary_learning/ae.pt"
        try:
            content = torch.load(self.folder / name, weights_only=True)
        except Exception as error:  # whatever a broken or hostile pickle raises
            raise BlockedError(check, f"{name}: {str(error).splitlines()[0]}") from None
        if not (isinstance(content, dict) and all(isinstance(value, Tensor) for value in content.values())):
            raise BlockedError(check, f"{name}: holds more than tensors by name")
        return content

    @cached_property
    def older_features(self) -> list[dict[str, Any]]:
        content = self._json("older/feature_analysis.json", "older_features_are_all_latents")
        return content["features"] if isinstance(content.get("features"), list) else []

    @cached_property
    def decoder(self) -> np.ndarray:
        try:
            return np.load(self.folder / "older" / "decoder_weights.npy", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise BlockedError("older_decoder_is_the_decoder", f"older/decoder_weights.npy: {error}") from None

    def json(self, name: str, check: str) -> Any:
        """A JSON file, whose loss is reported by one check."""
        return self._json(name, check)

    @cached_property
    def upload_batches(self) -> list[Path]:
        return sorted((self.folder / "neuronpedia" / "upload").glob("*.json"))

    @cached_property
    def source(self) -> Path:
        """Folder of the export."""
        names = self.manifest["neuronpedia"]
        return self.folder / "neuronpedia" / "export" / names["model"] / names["source"]

    def uploads(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Name and body of each upload batch, one in memory at a time."""
        for path in self.upload_batches:
            body = self._json(str(path.relative_to(self.folder)), "upload_batches_are_readable")
            if not isinstance(body, dict) or not isinstance(body.get("features"), list):
                raise BlockedError("upload_batches_are_readable", f"{path.name}: no object with a list of features")
            yield path.name, body

    def uploaded(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Batch and feature of every feature in the upload."""
        for name, body in self.uploads():
            for feature in body["features"]:
                yield f"{name}, feature {feature.get('index')}", feature

    def row(self, name: str) -> dict[str, Any]:
        """The one row of release, model, sourceset or source."""
        rows = list(self._lines(self.source / f"{name}.jsonl", open))
        if len(rows) != 1:
            raise BlockedError("export_rows_are_readable", f"{name}.jsonl: {len(rows)} rows, expected one")
        return rows[0][1]

    def exported(self, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Place and row of every feature or activation of the export."""
        for path in sorted((self.source / kind).glob("*.gz"), key=lambda p: (len(p.name), p.name)):
            yield from self._lines(path, gzip.open)

    def text_files(self) -> Iterator[tuple[str, str]]:
        """Small files that people read, as text."""
        for path in sorted(self.folder.rglob("*")):
            if path.suffix in (".json", ".md") and "neuronpedia" not in path.relative_to(self.folder).parts:
                yield path.relative_to(self.folder).as_posix(), path.read_text(encoding="utf-8", errors="replace")

    def _lines(self, path: Path, opener: Callable[..., Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        try:
            with opener(path, "rt", encoding="utf-8") as file:
                for number, line in enumerate(file, 1):
                    yield f"{path.name}, line {number}", json.loads(line, parse_constant=_no_number)
        except (OSError, EOFError, zlib.error, ValueError) as error:
            raise BlockedError("export_rows_are_readable", f"{path.name}: {error}") from None

    def _json(self, name: str, check: str) -> Any:
        try:
            # NaN is kept: that it is there is the matter of other checks.
            return json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BlockedError(check, f"{name}: {error}") from None


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no JSON number")
