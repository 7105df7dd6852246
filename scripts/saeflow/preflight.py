"""What a study needs of this machine, looked for before the first job: files, models, text, packages.

A check is a function that gives a line for each thing that is missing or does not fit; it is on the list by its
decorator. Those that need torch or WordNet run in a process of their own (`python -m saeflow.preflight`), so that
Snakemake's stays light; an answer without a mistake is remembered beside Snakemake's own notes, by all that it depends
on. What is known from the study alone is in `saeflow.config.checks`.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from saeflow import extras, tracking
from saeflow.config.sections import ConfigError
from saeflow.config.study import Study
from saeflow.datasets import concept_texts, corpus, files, texts
from saeflow.datasets.hierarchy import Hierarchy
from saeflow.models import language_files
from saeflow.reproduce import read_manifest

REMEMBERED = Path(".snakemake/saeflow")
_LONGEST_S = 600
_VERSIONS = ("torch", "transformers", "nltk")


@dataclass(frozen=True)
class Preflight:
    """A study on its way to the first job.

    Arguments:
        study: what is asked for.
        project: folder of the Snakefile.
        deployed: whether jobs run in containers or environments of their own, of which this process knows nothing.
        notes: what could not be looked at, and who will.
    """

    study: Study
    project: Path
    deployed: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def hierarchy_file(self) -> Path:
        """Nouns that ship with the project."""
        return self.project / "config/concepts/hierarchy.yaml"


def look(study: Study, project: Path, deployed: Collection[Any] = ()) -> list[str]:
    """Look for all that a study needs.

    Arguments:
        project: folder of the Snakefile.
        deployed: how jobs get environments of their own, if they do: this process knows nothing of those.
    Returns:
        notes on what could not be looked at.
    Raises:
        ConfigError: a line per mistake: the key or file, what is wrong with it and what would be right.
    """
    here = Preflight(study, project, bool(deployed))
    if problems := [line for check in _CHECKS for line in _lines(check, here)]:
        raise ConfigError("\n".join(problems))
    return here.notes


Check = Callable[[Preflight], Iterator[str]]
_CHECKS: list[Check] = []


def _check(check: Check) -> Check:
    _CHECKS.append(check)
    return check


def _lines(check: Check, here: Preflight) -> Iterator[str]:
    """What a check says; an error of the library is what it says last."""
    try:
        yield from check(here)
    except ValueError as error:
        yield str(error)
    except OSError as error:
        yield f"{error.filename}: cannot be read: {error.strerror}"


@_check
def _images(here: Preflight) -> Iterator[str]:
    if here.study.dataset.data_dir:
        files.find(here.study.dataset.name, here.study.dataset.data_dir)
    yield from ()


@_check
def _reference(here: Preflight) -> Iterator[str]:
    if here.study.reference is None:
        return
    reference = Path(here.study.reference)
    if reference.is_file():
        read_manifest(reference)
    elif not reference.is_dir():
        yield f"reference: {reference} is not there; name a MANIFEST.sha256 or the folder of a study"


@_check
def _text(here: Preflight) -> Iterator[str]:
    text = here.study.language and here.study.language.text
    if text and text.folder:
        texts.check(texts.files_of(text.folder), text.column)
    yield from ()


@_check
def _model_folders(here: Preflight) -> Iterator[str]:
    for name, model in _models(here.study).items():
        if model.folder:
            try:
                language_files.files_of(model.folder, model.trust_remote_code)
            except language_files.ModelFilesError as error:
                yield f"language.models.{name}.folder: {error}"


@_check
def _embedded_corpus(here: Preflight) -> Iterator[str]:
    text = here.study.language and here.study.language.text
    if not text or text.folder or text.dataset:
        return
    path = Path(text.hierarchy or here.hierarchy_file)
    if not path.is_file():
        yield f"language.text.hierarchy: {path} is not there"
        return
    asked, most = text.train_tokens + text.held_out_tokens, text.documents * corpus.most_words(Hierarchy.load(path))
    if asked > most:
        yield (
            f"language.text.documents: {text.documents:,} documents of the embedded corpus have {most:,} words at "
            f"most, but train_tokens and held_out_tokens ask for {asked:,}; about 100 words are in each"
        )


@_check
def _concepts_of_geometry(here: Preflight) -> Iterator[str]:
    geometry = here.study.geometry
    if not geometry or geometry.concepts.source != "file":
        return
    spec, path = geometry.concepts, Path(geometry.concepts.file or here.hierarchy_file)
    if not path.is_file():
        yield f"geometry.concepts.file: {path} is not there"
        return
    parents = Hierarchy.load(path).parents
    enough = [
        name
        for name, children in parents.items()
        if sum(len(child.words) >= spec.min_words for child in children) >= spec.min_children
    ]
    if len(enough) < 2:
        yield (
            f"geometry.concepts.min_words: {len(enough)} of {len(parents)} parents in {path} have {spec.min_children} "
            f"children (min_children) with {spec.min_words} nouns; two are needed"
        )


@_check
def _concepts_of_language(here: Preflight) -> Iterator[str]:
    language = here.study.language
    if not (language and language.saes.variants):
        return
    lost = [path for path in language.concepts.files if not Path(path).is_file()]
    yield from (f"language.concepts.files: {path} is not there" for path in lost)
    if not lost:
        shipped = sorted((here.project / "config/concepts/texts").glob("*.txt")) if language.concepts.shipped else []
        concept_texts.read([*shipped, *map(Path, language.concepts.files)])


@_check
def _packages(here: Preflight) -> Iterator[str]:
    if here.deployed:
        here.notes.append("packages and models are looked at by the jobs, in their own environments")
        return
    yield from tracking.problems()
    study = here.study
    asked: list[tuple[str, str, str]] = []
    if study.inversion and study.inversion.clustering.method == "umap_dbscan":
        asked.append(("inversion.clustering.method: 'umap_dbscan'", "umap", ", or take 'hdbscan'"))
    if study.geometry and study.geometry.concepts.source == "wordnet":
        asked.append(("geometry.concepts.source: 'wordnet'", "nltk", ""))
    if study.language and study.language.text.dataset:
        asked.append((f"language.text.dataset: '{study.language.text.dataset}'", "datasets", ""))
    for name, model in _models(study).items():
        if model.attention == "flash_attention_2":
            said = f"language.models.{name}.attention: 'flash_attention_2'"
            asked.append((said, "flash_attn", ", or take another attention"))
        if model.device_map:
            asked.append((f"language.models.{name}.device_map: '{model.device_map}'", "accelerate", ""))
    for key, module, instead in asked:
        if said := extras.missing(module):
            yield f"{key} {said}{instead}"


@_check
def _models_and_wordnet(here: Preflight) -> Iterator[str]:
    """What a process of its own finds."""
    request, key = _request(here)
    if not request or here.deployed or any(map(extras.missing, ("torch", "transformers"))):
        return
    remembered = REMEMBERED / hashlib.sha256(json.dumps([request, key], sort_keys=True).encode()).hexdigest()
    if remembered.is_file():
        return
    command = [sys.executable, "-m", "saeflow.preflight"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "HF_HUB_OFFLINE": "1"}
    given = json.dumps(request)
    try:
        run = subprocess.run(
            command, input=given, env=environment, capture_output=True, encoding="utf-8", timeout=_LONGEST_S, check=True
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        said = str(error.stderr or error).strip().splitlines()[-1]
        here.notes.append(f"models could not be looked at before the first job ({said}); jobs will")
        return
    found = json.loads(run.stdout.splitlines()[-1])
    yield from found
    if not found:
        try:
            remembered.parent.mkdir(parents=True, exist_ok=True)
            remembered.touch()
        except OSError:  # a folder that cannot be written is asked again
            return


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _request(here: Preflight) -> tuple[dict[str, Any], list[Any]]:
    """What the other process is asked, and what else its answer depends on."""
    study, models, stamps = here.study, [], []
    for name, model in _models(study).items():
        folder = Path(model.folder or f"data/language_models/{language_files.snapshot_name(model.id, model.revision)}")
        if not (folder / "config.json").is_file():
            continue
        if model.trust_remote_code and "auto_map" in (folder / "config.json").read_text(
            encoding="utf-8", errors="replace"
        ):
            here.notes.append(f"language.models.{name}: its own Python code is run by jobs alone, which look at it")
            continue
        asked = dict(item for of_asker in asked_of_model(study, name).values() for item in of_asker.items())
        models.append({"name": name, "folder": str(folder.absolute()), **asked})
        stamps += [(str(path), (s := path.stat()).st_size, s.st_mtime_ns) for path in sorted(folder.glob("*.*"))]
    request: dict[str, Any] = {"models": models} if models else {}
    concepts = study.geometry and study.geometry.concepts
    if concepts and concepts.source == "wordnet":
        request["synsets"] = concepts.synsets or ()
        stamps.append(os.environ.get("NLTK_DATA"))
    return request, stamps + [(name, _version(name)) for name in _VERSIONS]


def asked_of_model(study: Study, name: str) -> dict[str, dict[str, Any]]:
    """What the study asks of one of its models, by who asks, as `language_outline.problems` takes it."""
    model, geometry, inversion = study.language.models[name], study.geometry, study.inversion
    asked = {
        "capture": {
            "hook_points": [hook.model_dump(mode="json") for hook in model.hook_points],
            "context_size": study.language.text.context_size,
        }
    }
    if geometry and geometry.hierarchical and name in (geometry.models or study.language.models):
        asked["geometry"] = {"inner": geometry.interventions.inner, "rank": geometry.hierarchical.rank}
    if inversion and inversion.pipeline.optimize:
        asked["inversion"] = {"length": inversion.optimization.length}
    loaded = model.model_dump(mode="json", include={"attention", "trust_remote_code"})
    return {asker: {"settings": loaded} | of_asker for asker, of_asker in asked.items()}


def _models(study: Study) -> dict[str, Any]:
    """Language models that the study does not train itself."""
    return {
        name: model for name, model in (study.language.models if study.language else {}).items() if not model.embedded
    }


def main() -> None:
    """Read a request, write a list of lines."""
    request, found = json.load(sys.stdin), []
    if "models" in request:
        from saeflow.models import language_outline

        for model in request["models"]:
            found += language_outline.problems(**model)
    if "synsets" in request:
        from saeflow.datasets import wordnet

        try:
            wordnet.check(request["synsets"])
        except wordnet.WordNetError as error:
            found.append(str(error))
    sys.stdout.write(f"{json.dumps(found)}\n")


if __name__ == "__main__":
    main()
