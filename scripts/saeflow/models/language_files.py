"""Files of a language model's folder, and their download from the Hugging Face hub: nothing is loaded here."""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from saeflow.reproduce import sha256_file, write_json

log = logging.getLogger(__name__)

# What transformers reads of a folder: no pickles, and no code unless the study trusts it.
_PATTERNS = ("*.json", "*.safetensors", "*.model", "merges.txt", "vocab.txt", "*.jinja")
_CODE = "*.py"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")
SNAPSHOT = "saeflow_snapshot.json"


class ModelFilesError(ValueError):
    """A folder that holds no model, or a model that cannot be downloaded; says which and what would be right."""


def files_of(folder: Path | str, trust_remote_code: bool = False) -> list[Path]:
    """Files that a model is loaded from, sorted.

    Raises:
        ModelFilesError: no folder, no configuration, or no weights that run no code.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        what = "has no config.json" if folder.is_dir() else "is no folder"
        raise ModelFilesError(f"{folder}: {what}; a model is a folder in Hugging Face's format")
    patterns = (*_PATTERNS, _CODE) if trust_remote_code else _PATTERNS
    found = sorted(path for pattern in patterns for path in folder.glob(pattern) if path.is_file())
    if not any(path.suffix == ".safetensors" for path in found):
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
        what = f"only {', '.join(pickles)}, which can run code when loaded" if pickles else "no weights"
        raise ModelFilesError(f"{folder}: has {what}; convert the weights to *.safetensors")
    return found


def folder_of(paths: Path | Sequence[Path]) -> Path:
    """The folder of a model, from the one input that is it or from its files."""
    if isinstance(paths, Path):
        return paths if paths.is_dir() else paths.parent
    return folder_of(paths[0])


def revision_of(folder: Path) -> str:
    """What a model's weights are known by: the hub's commit, or the digest of all weights."""
    note = folder / SNAPSHOT
    if note.is_file():
        return json.loads(note.read_text())["commit"]
    digests = "".join(sha256_file(path) for path in sorted(folder.glob("*.safetensors")))
    return f"sha256:{hashlib.sha256(digests.encode()).hexdigest()}"


def snapshot_name(hub_id: str, revision: str) -> str:
    """Name of the folder that a model of the hub is downloaded to."""
    return f"{hub_id}@{revision}".replace("/", "--")


def download(hub_id: str, revision: str, folder: Path, trust_remote_code: bool) -> None:
    """Fetch a model's files at the commit that a revision names now; the commit is noted beside them.

    Raises:
        ModelFilesError: no such model or revision, or a gated one without access; says what to do.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    patterns = [*_PATTERNS, _CODE] if trust_remote_code else list(_PATTERNS)
    try:
        commit = HfApi().model_info(hub_id, revision=revision).sha
        snapshot_download(hub_id, revision=commit, local_dir=folder, allow_patterns=patterns)
    except GatedRepoError as error:
        raise ModelFilesError(
            f"{hub_id}: gated; accept its terms on its page on the hub, and set the environment variable HF_TOKEN to a "
            "token of that account"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelFilesError(f"{hub_id}: has no revision {revision!r}; name a commit, a tag or a branch") from error
    except RepositoryNotFoundError as error:
        raise ModelFilesError(
            f"{hub_id}: not on the hub, or private; check the name, or set HF_TOKEN if it is yours"
        ) from error
    files_of(folder, trust_remote_code)
    write_json(folder / SNAPSHOT, {"id": hub_id, "revision": revision, "commit": commit})
