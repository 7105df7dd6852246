"""Files of a language model's folder, and their download from the Hugging Face hub: nothing is loaded here."""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saeflow.reproduce import sha256_file, write_json

log = logging.getLogger(__name__)

# What transformers reads of a folder: no pickles, and no code unless the study trusts it.
_PATTERNS = ("*.json", "*.safetensors", "*.model", "merges.txt", "vocab.txt", "*.jinja")
_CODE = "*.py"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")
_CONFIG, _WEIGHTS, _INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_ADAPTER = "adapter_config.json"
# Short files that are read whole at every start; a tokenizer's long ones are where it is loaded.
_SHORT = (_CONFIG, "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_TOKENIZER = (*_SHORT, "tokenizer.json", "vocab.json")
_POINTER = b"version https://git-lfs.github.com/spec/"
_POINTER_BYTES = 1024  # a pointer has fewer
SNAPSHOT = "saeflow_snapshot.json"


class ModelFilesError(ValueError):
    """A folder that holds no model, or a model that cannot be downloaded; says which and what would be right."""


def files_of(folder: Path | str, trust_remote_code: bool = False) -> list[Path]:
    """Files that a model is loaded from, sorted; each is what its name says, as far as its size and header tell.

    Raises:
        ModelFilesError: no folder, no configuration, no weights that run no code; or a file that is not whole. Names
            the file, and what it is.
    """
    folder = Path(folder)
    if (folder / _ADAPTER).is_file():
        raise ModelFilesError(
            f"{folder}: has {_ADAPTER}, so it holds an adapter; merge it into its model (peft's merge_and_unload), and "
            "save that"
        )
    if not (folder / _CONFIG).is_file():
        what = f"has no {_CONFIG}" if folder.is_dir() else "is no folder"
        raise ModelFilesError(f"{folder}: {what}; a model is a folder in Hugging Face's format")
    patterns = (*_PATTERNS, _CODE) if trust_remote_code else _PATTERNS
    found = sorted(path for pattern in patterns for path in folder.glob(pattern) if path.is_file())
    for path in found:
        _refuse_pointer(path)
        if path.name in _SHORT:
            read_json(path)
    for path in _weights(folder, found):
        _check_weights(path)
    return found


def check_tokenizer(folder: Path) -> None:
    """Refuse files of a tokenizer that are not whole.

    Raises:
        ModelFilesError: names the file, and what it is.
    """
    for path in sorted(folder.glob("*")):
        if path.is_file():
            _refuse_pointer(path)
        if path.name in _TOKENIZER:
            read_json(path)


def _refuse_pointer(path: Path) -> None:
    """Refuse what stands in place of a file in a repository that was cloned without its large files."""
    if path.stat().st_size < _POINTER_BYTES and path.read_bytes().startswith(_POINTER):
        raise ModelFilesError(
            f"{path}: is a pointer of Git LFS, not the file; run `git lfs pull` in its folder, or download the model "
            "again"
        )


def read_json(path: Path) -> dict[str, Any]:
    """One of a model's files of settings.

    Raises:
        ModelFilesError: no JSON, or not that of an object; names the file and the line.
    """
    try:
        found = json.loads(path.read_bytes().decode())  # a byte order mark is refused, as transformers does
    except (ValueError, RecursionError) as error:
        where = f"line {error.lineno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else "not readable"
        raise ModelFilesError(f"{path}: is no whole JSON ({where}); download or save it again") from error
    if not isinstance(found, dict):
        raise ModelFilesError(f"{path}: holds {type(found).__name__}, expected a JSON object; download it again")
    return found


def config_of(folder: Path) -> dict[str, Any]:
    """What `config.json` says.

    Raises:
        ModelFilesError: see `read_json`.
    """
    return read_json(folder / _CONFIG)


def _weights(folder: Path, found: Sequence[Path]) -> list[Path]:
    """Files of the weights that transformers reads."""
    weights = [path.name for path in found if path.suffix == ".safetensors"]
    if _WEIGHTS in weights:
        return [folder / _WEIGHTS]
    if (folder / _INDEX).is_file():
        shards = read_json(folder / _INDEX).get("weight_map")
        if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
            raise ModelFilesError(f"{folder / _INDEX}: names no files of weights in `weight_map`; download it again")
        if missing := sorted(set(shards.values()) - set(weights)):
            raise ModelFilesError(
                f"{folder / _INDEX}: names {some(missing)}, which the folder does not have; download the model again"
            )
        return [folder / name for name in sorted(set(shards.values()))]
    if weights:
        raise ModelFilesError(
            f"{folder}: has {some(weights)}, but no {_INDEX}; weights are {_WEIGHTS}, or files that the index names"
        )
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
    what = f"only {some(pickles)}, which can run code when loaded" if pickles else "no weights"
    raise ModelFilesError(f"{folder}: has {what}; convert the weights to *.safetensors")


def _check_weights(path: Path) -> None:
    """Refuse a file whose header does not describe it."""
    from safetensors import SafetensorError, safe_open

    size = path.stat().st_size
    if not size:
        raise ModelFilesError(f"{path}: is empty; download it again")
    try:
        with safe_open(path, framework="np"):
            pass
    except (SafetensorError, OSError) as error:
        raise ModelFilesError(
            f"{path}: {size:,} bytes that are no whole safetensors file ({error}); it was cut off, or is another file: "
            "download it again"
        ) from error


def whole_numbers(folder: Path, found: Sequence[Path]) -> list[str]:
    """Names of tensors in a folder's weights that are whole numbers, truth values or complex: masks, or codes.

    Arguments:
        found: files of the folder, of `files_of`.
    """
    from safetensors import safe_open

    names = []
    for path in _weights(folder, found):
        with safe_open(path, framework="np") as file:
            kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
        names += [name for name, kind in kinds.items() if kind == "BOOL" or kind[0] in "IUC"]
    return names


def some(names: Sequence[str], most: int = 3) -> str:
    """Some of several names, and how many there are beside them."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def folder_of(paths: Path | Sequence[Path]) -> Path:
    """The folder of a model, from the one input that is it or from its files."""
    if isinstance(paths, Path):
        return paths if paths.is_dir() else paths.parent
    return folder_of(paths[0])


def revision_of(folder: Path) -> str:
    """What a model's weights are known by: the hub's commit, or the digest of all weights."""
    note = folder / SNAPSHOT
    if note.is_file():
        return json.loads(note.read_text(encoding="utf-8"))["commit"]
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
