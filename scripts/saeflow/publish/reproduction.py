"""Somebody else's study from its crate: check that this project is the one that made it, write the study to rebuild.

`python -m saeflow.publish.reproduction CRATE FOLDER` writes FOLDER/study.yaml, whose `reference` is in the crate:
building that study in FOLDER ends with the comparison.
"""

import argparse
import json
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from saeflow import config, record, reproduce
from saeflow.publish import crate_layout as layout

PROJECT = Path(__file__).parents[3]
_BESIDE = (layout.STUDY_FILE, layout.MANIFEST)


class CrateError(Exception):
    """A crate that cannot be rebuilt here; the message says what is wrong and what would be right."""


def receive(crate: Path, folder: Path, *, compare: str | None = None, data_dir: str | None = None) -> str:
    """Write the study of a crate to `folder`/study.yaml, to be built there, and say how it will be compared.

    Arguments:
        crate: a crate's folder or zip; a zip is unpacked into `folder`/crate.
        folder: made if need be.
        compare: `bytes` or `tables`; by default bytes where machine and software are those of the crate.
        data_dir: where the data set's files lie, in place of a download.
    Raises:
        CrateError: no crate, an incomplete or altered one, or one of another version of the project.
        config.ConfigError: its study cannot be run, or takes no `data_dir`.
        ValueError: its manifest has a line that is no digest.
        yaml.YAMLError: its study is no YAML.
    """
    root = _opened(crate, folder / "crate")
    entities = _entities(root)
    _check_files(root)
    _check_project(root)
    study = config.load(root / layout.STUDY_FILE)
    unlike = _unlike(entities, study.compute.device)
    compare = compare or ("tables" if unlike else "bytes")
    reference = root / (layout.MANIFEST if compare == "bytes" else layout.STUDY)
    content = study.model_dump(mode="json") | {"reference": str(reference.resolve())}
    content["dataset"]["data_dir"] = data_dir
    config.parse(content)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.yaml").write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    how = "byte by byte" if compare == "bytes" else f"table by table, {study.verify.rtol:g} relative tolerance"
    notes = (f"not the same here: {line}" for line in unlike)
    return "\n".join([f"study '{study.study}', to be compared {how}", *notes])


def _opened(crate: Path, folder: Path) -> Path:
    """Folder of the crate."""
    if crate.is_dir():
        return crate
    if not crate.is_file():
        raise CrateError(f"{crate}: no such file or folder; a crate is what `make crate` writes")
    if not zipfile.is_zipfile(crate):
        raise CrateError(f"{crate}: neither a folder nor a zip archive")
    with zipfile.ZipFile(crate) as archive:
        if layout.METADATA not in archive.namelist():
            raise CrateError(f"{crate}: no {layout.METADATA} at its top, so it is no RO-Crate")
        there = folder / layout.METADATA
        if there.is_file() and there.read_bytes() != archive.read(layout.METADATA):
            raise CrateError(f"{folder}: holds another crate; name another folder to build in")
        for name in archive.namelist():
            if not (folder / name).resolve().is_relative_to(folder.resolve()):
                raise CrateError(f"{crate}: '{name}' would lie outside {folder}; this archive is not to be trusted")
            archive.extract(name, folder)
    return folder


def _entities(root: Path) -> dict[str, Mapping[str, Any]]:
    """Entities of the crate's metadata, by id."""
    path = root / layout.METADATA
    if not path.is_file():
        raise CrateError(f"{root}: no {layout.METADATA} in it, so it is no RO-Crate")
    try:
        entities = {entity["@id"]: entity for entity in json.loads(path.read_text())["@graph"]}
        workflow = entities["./"]["mainEntity"]["@id"]
    except (ValueError, KeyError, TypeError) as error:
        raise CrateError(f"{path}: cannot be read as the metadata of a workflow's RO-Crate ({error!r})") from None
    if workflow != "Snakefile":
        raise CrateError(f"{path}: its main entity is {workflow}, but a study's crate has the Snakefile there")
    return entities


def _check_files(root: Path) -> None:
    """What the study shows is whole and unaltered."""
    for name in _BESIDE:
        if not (root / name).is_file():
            raise CrateError(f"{root / name}: missing; the crate is incomplete")
    digests = reproduce.read_manifest(root / layout.MANIFEST)
    shown = {name: digest for name, digest in digests.items() if layout.is_shown(name)}
    here = reproduce.manifest(root / layout.STUDY, [root / layout.STUDY])
    here = {name: digest for name, digest in here.items() if f"{layout.STUDY}/{name}" not in _BESIDE}
    comparison = reproduce.compare_manifests(here, shown)
    if not comparison.equal:
        raise CrateError(f"{root}: altered since it was made\n" + "\n".join(comparison.lines()))


def _check_project(root: Path) -> None:
    """The workflow, locks and all, is the one that is here."""
    try:
        theirs = reproduce.manifest(root, (root / name for name in layout.project_files(root)))
    except FileNotFoundError as error:
        raise CrateError(f"the crate is incomplete: {error}") from None
    ours = reproduce.manifest(PROJECT, (PROJECT / name for name in layout.project_files(PROJECT)))
    unlike = sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))
    # Prose and other studies change no result.
    unlike = [name for name in unlike if not name.startswith("config/") and not name.endswith((".md", ".cff"))]
    if unlike:
        raise CrateError(
            f"the crate was made by another version of saeflow; these files differ: {', '.join(unlike)}\n"
            f"Build with that version, which the crate carries:  make -C {root.resolve()} reproduce CRATE=."
        )


def _unlike(entities: Mapping[str, Mapping[str, Any]], device: str) -> list[str]:
    """What of processor, GPU and software is not as it was for the crate, a line each."""
    if device == "cuda":
        import torch  # noqa: F401  (tells which GPU is here)
    ours = record.versions() | {"processor": record.processor(), "gpus": ", ".join(record.gpus(device)) or "none"}
    theirs: dict[str, set[str]] = {}
    for identifier, entity in entities.items():
        if entity["@type"] == "SoftwareApplication":
            theirs.setdefault(entity["name"], set()).add(entity["softwareVersion"])
        elif identifier.startswith("#machine-") and entity["name"] in ("processor", "gpus"):
            theirs.setdefault(entity["name"], set()).add(entity["value"])
    if len(theirs["gpus"]) > 1:
        theirs["gpus"].discard("none")  # jobs that draw and write have no use for the GPU
    return [
        f"{name} {ours.get(name, 'none')}, in the crate {' and '.join(sorted(values))}"
        for name, values in sorted(theirs.items())
        if values != {ours.get(name)}
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Check a crate and write the study to rebuild.")
    parser.add_argument("crate", type=Path, help="folder or zip")
    parser.add_argument("folder", type=Path, help="folder to build in")
    parser.add_argument("--compare", choices=("bytes", "tables"), help="by default bytes on a machine like the crate's")
    parser.add_argument("--data-dir", help="folder with the data set's files, in place of a download")
    arguments = parser.parse_args()
    try:
        said = receive(arguments.crate, arguments.folder, compare=arguments.compare, data_dir=arguments.data_dir)
    except (CrateError, ValueError, yaml.YAMLError) as error:
        sys.exit(f"This crate cannot be rebuilt here:\n{error}")
    sys.stdout.write(said + "\n")


if __name__ == "__main__":
    main()
