"""Digests of the files that a study reads and that are no part of the project: models, text, concepts of its own."""

from pathlib import Path

from saeflow.config import paths
from saeflow.config.paths import COMPARED, IMAGES
from saeflow.config.study import Study
from saeflow.datasets import texts, wordnet
from saeflow.models import language_files
from saeflow.reproduce import sha256_file

_WORDNET = "geometry.concepts.source"


def digests_of(study: Study) -> dict[str, str]:
    """sha256 of each file, by the key that names it and, for a folder or a list, its name there.

    Image sets are left out: their content is compared with what the project knows.

    Raises:
        ModelFilesError, TextError, WordNetError: no model, text or WordNet where the study says.
        OSError: a file that cannot be read.
    """
    files: dict[str, Path] = {}
    for key, value in paths.files_of(study).items():
        if key in (COMPARED, IMAGES):
            continue
        match key.split("."):
            case ["language", "models", name, "folder"]:
                found = language_files.files_of(str(value), study.language.models[name].trust_remote_code)
            case ["language", "text", "folder"]:
                found = texts.files_of(str(value))
            case _ if isinstance(value, str):
                files[key] = Path(value)
                continue
            case _:
                found = list(map(Path, value))
        files |= {f"{key}/{path.name}": path for path in found}
    digests = {name: sha256_file(path) for name, path in files.items()}
    if study.geometry and study.geometry.concepts.source == "wordnet":
        digests[_WORDNET] = wordnet.digest()
    return digests
