"""Somebody else's study from its crate: check that this project is the one that made it, write the study to rebuild.

`python -m saeflow.publish.reproduction CRATE FOLDER` writes FOLDER/study.yaml, whose `reference` is in the crate:
building that study in FOLDER ends with the comparison.  A crate is data: it says what is computed, and who rebuilds it
says which files are read, how near is equal, and whether a model's own code runs.
"""

import argparse
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml
from pyarrow import parquet

from saeflow import comparison, record, reproduce, strict_yaml
from saeflow.config import paths
from saeflow.config.paths import IMAGES, Named
from saeflow.config.reading import load, parse
from saeflow.config.study import Study, Tolerances
from saeflow.publish import crate_archive, crate_metadata, study_inputs
from saeflow.publish import crate_layout as layout
from saeflow.publish.crate_metadata import CrateError, Described
from saeflow.terminal import plain

PROJECT = Path(__file__).parents[3]
_MOST_STUDY = 4 << 20
_MOST_SHOWN = 4000  # characters of a line


@dataclass(frozen=True)
class Wishes:
    """What whoever rebuilds a study decides, and no crate.

    Arguments:
        compare: `bytes` or `tables`; by default bytes where machine and software are those of the crate.
        data_dir: where the data set's files lie, in place of a download.
        files: where the files lie that the study names, by key.
        rtol, atol: tolerances of tables; the project's by default.
        trust_remote_code: whether a model that asks for it may run Python code that lies beside it.
        most_gib: what the crate may unpack to.
    """

    compare: str | None = None
    data_dir: str | None = None
    files: Mapping[str, Named] = field(default_factory=dict)
    rtol: float = Tolerances().rtol
    atol: float = Tolerances().atol
    trust_remote_code: bool = False
    most_gib: float = crate_archive.MOST_GIB


def receive(crate: Path, folder: Path, **wishes: Any) -> str:
    """Write the study of a crate to `folder`/study.yaml, to be built there, and say how it will be compared.

    Arguments:
        crate: a crate's folder or zip; a zip is unpacked into `folder`/crate.
        folder: made if need be.
        wishes: as `Wishes` has them.
    Raises:
        CrateError: no crate, an incomplete or altered one, one of another version of the project, one that asks for
            what is not its to decide, or files that are not those that it was made from.
        config.ConfigError: its study cannot be run, or takes no `dataset.data_dir`.
        ValueError: a manifest with a line that is no digest, or a file of the study that is not there.
    """
    wished = Wishes(**wishes)
    root = _root(crate, folder, wished.most_gib)
    described = _described(root)
    _check_results(root, described)
    _check_project(root)
    _check_digests(root, described)
    theirs = _study(root)
    study = _with_wishes(theirs, wished)
    _check_inputs(root, study)
    unlike = _unlike(described, study.compute.device)
    compare = wished.compare or ("tables" if unlike else "bytes")
    if compare == "tables":
        _check_tables(root, wished.most_gib)
    reference = root / (layout.MANIFEST if compare == "bytes" else layout.STUDY)
    content = study.model_dump(mode="json") | {"reference": str(reference.resolve())}
    parse(content)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.yaml").write_text(strict_yaml.written(content), encoding="utf-8")
    how = "byte by byte" if compare == "bytes" else f"table by table, {_text(study.verify)}"
    return "\n".join([f"study '{study.study}', to be compared {how}", *_notes(theirs, study, unlike)])


def _root(crate: Path, folder: Path, most_gib: float) -> Path:
    """Folder of the crate."""
    if not crate.is_dir():
        if not crate.is_file():
            raise CrateError(f"{crate}: no such file or folder; a crate is what `make crate` writes")
        crate_archive.unpack(crate, folder / "crate", most_gib)
        return folder / "crate"
    if folder.resolve() == crate.resolve():
        raise CrateError(f"{folder}: is the crate itself; name another folder to build in")
    return crate


def _described(root: Path) -> Described:
    path = root / layout.METADATA
    if not path.is_file():
        raise CrateError(f"{root}: no {layout.METADATA} in it, so it is no RO-Crate")
    return crate_metadata.read(path.read_bytes())


def _check_results(root: Path, described: Described) -> None:
    """What the study shows is whole and unaltered, and there is nothing beside it."""
    for name in layout.BESIDE:
        if not (root / name).is_file():
            raise CrateError(f"{root / name}: missing; the crate is incomplete")
    _check_files(root, _walk(root / layout.STUDY))
    digests = reproduce.read_manifest(root / layout.MANIFEST)
    for name in digests:
        crate_metadata.check_name(name)
    shown = {name: digest for name, digest in digests.items() if layout.is_shown(name)}
    here = reproduce.manifest(root / layout.STUDY, [root / layout.STUDY])
    here = {name: digest for name, digest in here.items() if f"{layout.STUDY}/{name}" not in layout.BESIDE}
    _same(root, here, shown)
    # The study and its manifest are in no manifest, but in the metadata.
    beside = {name: reproduce.sha256_file(root / name) for name in layout.BESIDE}
    declared = {name: digest for name, digest in described.files.items() if name.startswith(f"{layout.STUDY}/")}
    _same(root, beside | {f"{layout.STUDY}/{name}": digest for name, digest in here.items()}, declared)


def _check_project(root: Path) -> None:
    """The workflow, locks, concepts and all, is the one that is here."""
    try:
        files = [root / name for name in layout.project_files(root)]
    except FileNotFoundError as error:
        raise CrateError(f"the crate is incomplete: {error}") from None
    _check_files(root, files)
    theirs = reproduce.manifest(root, files)
    ours = reproduce.manifest(PROJECT, (PROJECT / name for name in layout.project_files(PROJECT)))
    unlike = sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))
    unlike = list(filter(layout.changes_results, unlike))
    if unlike:
        raise CrateError(
            f"the crate was made by another version of saeflow; these files differ: {', '.join(map(plain, unlike))}\n"
            "Build with that version. The crate carries it, but that runs code out of the archive: read it, or have it "
            f"from somebody whom you trust, before  make -C {root.resolve()} reproduce CRATE=."
        )


def _check_digests(root: Path, described: Described) -> None:
    """Each file of the project in the crate is as the metadata says, and there is no other."""
    here = reproduce.manifest(root, (root / name for name in layout.project_files(root)))
    declared = {name: digest for name, digest in described.files.items() if not name.startswith(f"{layout.STUDY}/")}
    _same(root, here, declared)


def _same(root: Path, here: Mapping[str, str], declared: Mapping[str, str]) -> None:
    result = comparison.compare_manifests(here, declared)
    if not result.equal:
        raise CrateError(f"{root}: altered since it was made\n" + "\n".join(map(plain, result.lines())))


def _check_files(root: Path, paths: Iterable[Path]) -> None:
    """Each is a file of the crate: a link leads elsewhere, and a pipe or a device may never end."""
    for path in paths:
        if not stat.S_ISREG(path.lstat().st_mode) or path.resolve() != root.resolve() / path.relative_to(root):
            raise CrateError(f"{path}: a link or a device; a crate holds files alone")


def _walk(folder: Path) -> Iterator[Path]:
    """Everything below a folder that is no folder, links to folders too."""
    for here, folders, files in os.walk(folder):
        yield from (Path(here, name) for name in files)
        yield from (path for path in (Path(here, name) for name in folders) if path.is_symlink())


def _study(root: Path) -> Study:
    """The crate's study, which leads to no file."""
    path = root / layout.STUDY_FILE
    if path.stat().st_size > _MOST_STUDY:
        raise CrateError(f"{path}: has more bytes than any study")
    try:
        study = load(path)
    except (yaml.YAMLError, RecursionError) as error:
        raise CrateError(f"{path}: cannot be read as a study ({plain(error)})") from None
    content, blank = study.model_dump(mode="json"), paths.without_files(study)
    if content != blank:
        key = next(key for key, value in paths.files_of(study).items() if value != _at(blank, key))
        raise CrateError(
            f"{layout.STUDY_FILE}: {key} leads to {plain(_at(content, key))}, but a crate's study names no file of a "
            "machine, nor one of the crate; do not trust it"
        )
    return study


def _at(content: Mapping[str, Any], key: str) -> Any:
    for step in key.split("."):
        content = content[step]
    return content


def _with_wishes(study: Study, wishes: Wishes) -> Study:
    """The study as it will be built here."""
    if study.language and not wishes.trust_remote_code:
        for name, model in study.language.models.items():
            if model.trust_remote_code:
                raise CrateError(
                    f"language.models.{name}.trust_remote_code: the crate asks to run Python code that lies beside "
                    "this model, which can do whatever you can; read that code, then rebuild with TRUST_REMOTE_CODE=1 "
                    "(--trust-remote-code)"
                )
    named = set(paths.files_of(study))
    if absent := sorted(named - set(wishes.files)):
        asked = " ".join(f"{key}=PATH" for key in absent)
        raise CrateError(
            f"{', '.join(absent)}: the study reads files that are not in the crate; say where you have them: "
            f'FILES="{asked}" (--files)'
        )
    if strangers := sorted(set(wishes.files) - named):
        known = ", ".join(sorted(named)) or "none"
        raise CrateError(
            f"{strangers[0]}: the study names no file by this key, but by {known}; images are given by DATA"
        )
    content = study.model_dump(mode="json")
    ours = wishes.files | ({IMAGES: wishes.data_dir} if wishes.data_dir else {})
    files = {key: _as_in(_at(content, key), value) for key, value in ours.items()}
    content = paths.with_files(content, files)
    return parse(content | {"verify": {"rtol": wishes.rtol, "atol": wishes.atol}})


def _as_in(theirs: Named | None, ours: Named) -> Named:
    """Absolute paths, in a list where the study has one: jobs run in another folder."""
    paths = [str(Path(path).absolute()) for path in ([ours] if isinstance(ours, str) else ours)]
    return paths if isinstance(theirs, list) else paths[-1]


def _check_inputs(root: Path, study: Study) -> None:
    """The files that the study reads here are those that it was made from."""
    theirs = reproduce.read_manifest(root / layout.INPUTS)
    try:
        ours = study_inputs.digests_of(study)
    except OSError as error:
        raise CrateError(f"{error.filename}: cannot be read: {error.strerror}") from None
    result = comparison.compare_manifests(ours, theirs)
    if not result.equal:
        raise CrateError(
            "the study would read other files than those that it was made from\n"
            + "\n".join(map(plain, result.lines()))
        )


def _check_tables(root: Path, most_gib: float) -> None:
    """Tables to compare with can be read, and unpack to no more than the crate may."""
    size = 0
    for path in sorted((root / layout.STUDY).rglob("*.parquet")):
        try:
            about = parquet.read_metadata(path)
        except (pa.ArrowException, OSError) as error:
            raise CrateError(f"{path}: no Parquet table ({plain(error)})") from None
        size += sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))
    if size > most_gib * 2**30:
        raise CrateError(f"{root}: its tables unpack to {size / 2**30:,.1f} GiB, more than {most_gib:g} (MOST_GIB)")


def _unlike(described: Described, device: str) -> list[str]:
    """What of processor, GPU and software is not as it was for the crate, a line each."""
    if device == "cuda":
        import torch  # noqa: F401  (tells which GPU is here)
    ours = record.versions() | {"processor": record.processor(), "gpus": ", ".join(record.gpus(device)) or "none"}
    theirs = {name: set(values) for name, values in (described.software | described.machine).items()}
    if len(theirs["gpus"]) > 1:
        theirs["gpus"].discard("none")  # jobs that draw and write have no use for the GPU
    return [
        f"{plain(name)} {ours.get(name, 'none')}, in the crate {plain(' and '.join(sorted(values)))}"
        for name, values in sorted(theirs.items())
        if values != {ours.get(name)}
    ]


def _notes(theirs: Study, study: Study, unlike: Sequence[str]) -> Iterator[str]:
    """What the reader should know before the work, a line each."""
    yield from (f"not the same here: {line}" for line in unlike)
    if theirs.verify != study.verify:
        yield f"the crate asks for {_text(theirs.verify)}, which is not taken; RTOL and ATOL set others"
    if study.language:
        of_hub = {f"models.{name}": model.revision for name, model in study.language.models.items()}
        of_hub["text"] = study.language.text.revision
        for key, revision in of_hub.items():
            if revision and not re.fullmatch("[0-9a-f]{40}", revision):
                yield f"language.{key}.revision: '{revision}' may have moved since; only a commit stays what it is"
        for name, model in study.language.models.items():
            if model.trust_remote_code:
                yield f"language.models.{name}: runs Python code that lies beside it, as you allowed"


def _text(verify: Tolerances) -> str:
    return f"{verify.rtol:g} relative tolerance, {verify.atol:g} absolute"


def _files(text: str) -> dict[str, Named]:
    """`<key>=<path> ...` by key; a path may hold spaces, and a key that comes again has a list."""
    found: dict[str, Named] = {}
    starts = list(re.finditer(r"(?:^|\s)([a-z][a-z0-9_]*(?:\.[a-z0-9_]+)+)=", text))
    if text.strip() and (not starts or text[: starts[0].start()].strip()):
        raise argparse.ArgumentTypeError("is written KEY=PATH KEY=PATH, each key as the study has it")
    for start, end in zip(starts, [*(s.start() for s in starts[1:]), len(text)], strict=True):
        path, before = text[start.end() : end].strip(), found.get(start[1])
        found[start[1]] = path if before is None else [*([before] if isinstance(before, str) else before), path]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Check a crate and write the study to rebuild.")
    parser.add_argument("crate", type=Path, help="folder or zip")
    parser.add_argument("folder", type=Path, help="folder to build in")
    parser.add_argument("--compare", choices=("bytes", "tables"), help="by default bytes on a machine like the crate's")
    parser.add_argument("--data-dir", help="folder with the data set's files, in place of a download")
    parser.add_argument("--files", type=_files, default={}, help='where you have what the study reads: "KEY=PATH ..."')
    parser.add_argument(
        "--rtol", type=float, default=Wishes.rtol, help="relative tolerance of tables (default %(default)g)"
    )
    parser.add_argument(
        "--atol", type=float, default=Wishes.atol, help="absolute tolerance of tables (default %(default)g)"
    )
    parser.add_argument("--trust-remote-code", action="store_true", help="let models run the code beside them; read it")
    parser.add_argument("--most-gib", type=float, default=Wishes.most_gib, help="GiB that the crate may unpack to")
    arguments = vars(parser.parse_args())
    try:
        said = receive(**arguments)
    except (CrateError, ValueError, OSError) as error:
        lines = (plain(line, _MOST_SHOWN) for line in str(error).splitlines())
        sys.exit("\n".join(["This crate cannot be rebuilt here:", *lines]))
    sys.stdout.write(said + "\n")


if __name__ == "__main__":
    main()
