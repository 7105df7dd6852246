"""A finished study as a Workflow Run RO-Crate: what ran, with which settings, on which machine, and what it shows.

Profile: Workflow Run Crate 0.5, on RO-Crate 1.1.  Dates and machines stand in the metadata file alone, taken from the
jobs' records: a second crate of one build has the same bytes, one of another build differs in that file.
"""

import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rocrate.model.contextentity import ContextEntity
from rocrate.model.file import File
from rocrate.rocrate import ROCrate

from saeflow import __version__, reproduce, strict_yaml
from saeflow.publish import crate_layout as layout

PROFILES = {
    "https://w3id.org/ro/wfrun/process/0.5": "Process Run Crate",
    "https://w3id.org/ro/wfrun/workflow/0.5": "Workflow Run Crate",
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0": "Workflow RO-Crate",
}
BIOSCHEMAS = "https://bioschemas.org/profiles/ComputationalWorkflow/1.0-RELEASE"
TERMS = "https://w3id.org/ro/terms/workflow-run#"
PARAMETERS = {
    "seed": "Root of every random draw.",
    "classifiers.seeds": "One network per seed.",
    "saes.seeds": "SAEs per activation store.",
    "compute.device": "Device of every training and analysis job.",
    "compute.threads": "CPU threads of one job.",
}
FORMATS = {
    ".csv": "text/csv",
    ".html": "text/html",
    ".json": "application/json",
    ".md": "text/markdown",
    ".parquet": "application/vnd.apache.parquet",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".yaml": "application/yaml",
}


@dataclass(frozen=True)
class Run:
    """A finished study.

    Arguments:
        study: the whole config, as builtins, without paths of this machine.
        inputs: digests of the files that it reads, as `study_inputs.digests_of` has them.
        manifest: its MANIFEST.sha256; the results lie beside it.
        records: what `saeflow.record` read from its logs, the last job at the end.
        project: root of the workflow.
        snakemake: version that ran it.
    """

    study: Mapping[str, Any]
    inputs: Mapping[str, str]
    manifest: Path
    records: Sequence[Mapping[str, Any]]
    project: Path
    snakemake: str


def write(run: Run, target: Path) -> None:
    """Write the crate of a run as a zip archive.

    Raises:
        FileNotFoundError: a result or a container image that the run used cannot be read.
        ValueError: a result is not what the manifest says.
    """
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder, "crate")
        describe(run, Path(folder)).write(tree)
        _zip(tree, target)


def describe(run: Run, folder: Path) -> ROCrate:
    """The crate of a run, with its files where they are now; what is no file yet is written into `folder`."""
    crate = ROCrate(version="1.1")
    crate.metadata.extra_terms |= {
        name: TERMS + name for name in ("ContainerImage", "containerImage", "resourceUsage", "sha256")
    }
    ended = run.records[-1]["ended"]
    workflow = _add_workflow(crate, run)
    settings, inputs = _add_settings(crate, run, folder)
    results = [_add_file(crate, run.manifest, layout.MANIFEST, name="Digest of every result of the study")]
    for name, digest in reproduce.read_manifest(run.manifest).items():
        if layout.is_shown(name):
            results.append(_add_file(crate, run.manifest.parent / name, f"{layout.STUDY}/{name}", sha256=digest))
    workflow["input"] = inputs
    workflow["output"] = [
        _parameter(crate, "manifest", "File", "Digest of every result.", results[0]),
        _parameter(crate, "report", "File", "What the study shows.", crate.get(f"{layout.STUDY}/report.html")),
    ]
    locks = [crate.get(name) for name in layout.project_files(run.project) if name.endswith(".lock")]
    action = crate.add_action(
        workflow,
        identifier="#run",
        object=[*settings, *locks],
        result=results,
        properties={
            "name": f"Run of the study {run.study['study']}",
            "description": f"{len(run.records)} jobs of Snakemake {run.snakemake}.",
            "startTime": min(record["started"] for record in run.records),
            "endTime": ended,
            "actionStatus": "http://schema.org/CompletedActionStatus",
        },
    )
    action["resourceUsage"] = list(_machines(crate, run.records))
    images = list(_images(crate, run.records))
    if images:
        action["containerImage"] = images
    root = crate.root_dataset
    root["name"] = f"saeflow study {run.study['study']}"
    root["description"] = (
        f"What the study {run.study['study']} shows, the digest of everything that it built, and the workflow, "
        "settings and locks to build it again."
    )
    root["license"] = crate.get("LICENSE")
    root["datePublished"] = ended
    root["mentions"] = action
    root["conformsTo"] = [
        _entity(crate, identifier, "CreativeWork", name=name, version=identifier.rpartition("/")[2])
        for identifier, name in PROFILES.items()
    ]
    return crate


def _add_workflow(crate: ROCrate, run: Run) -> File:
    """The Snakefile as main entity, all other files of the project, and the software that ran them."""
    workflow = crate.add_workflow(
        run.project / "Snakefile", "Snakefile", main=True, lang="snakemake", lang_version=run.snakemake
    )
    workflow["name"], workflow["version"], workflow["encodingFormat"] = "saeflow", __version__, "text/plain"
    workflow["sha256"] = reproduce.sha256_file(run.project / "Snakefile")
    workflow["conformsTo"] = {"@id": BIOSCHEMAS}
    for name in layout.project_files(run.project):
        if name != "Snakefile":
            _add_file(crate, run.project / name, name)
    crate.get("README.md")["about"] = crate.root_dataset
    packages = sorted({item for record in run.records for item in record["versions"].items()})
    workflow["softwareRequirements"] = [
        _entity(crate, _package(name, version), "SoftwareApplication", name=name, softwareVersion=version)
        for name, version in packages
    ]
    return workflow


def _add_settings(crate: ROCrate, run: Run, folder: Path) -> tuple[list, list]:
    """The study file, digests of what it reads, its seeds, threads and device as values; the workflow's parameters that
    they are values of."""
    study, inputs = folder / "study.yaml", folder / "INPUTS.sha256"
    study.write_text(strict_yaml.written(dict(run.study)), encoding="utf-8")
    reproduce.write_manifest(inputs, run.inputs)
    file = _add_file(crate, study, layout.STUDY_FILE, name="The study: every setting, defaults included")
    read = _add_file(crate, inputs, layout.INPUTS, name="Digest of every file that the study reads")
    values = [file, read]
    parameters = [_parameter(crate, "study", "File", "The study file.", file)]
    parameters.append(_parameter(crate, "inputs", "File", "Models, text and concepts that the study names.", read))
    for key, meaning in PARAMETERS.items():
        found: Any = run.study
        for step in key.split("."):
            found = found[step]
        text = ", ".join(map(str, found)) if isinstance(found, list) else found
        values.append(_entity(crate, f"#value-{key}", "PropertyValue", name=key, value=text))
        parameters.append(_parameter(crate, key, "PropertyValue", meaning, values[-1]))
    return values, parameters


def _machines(crate: ROCrate, records: Iterable[Mapping[str, Any]]) -> Iterable[ContextEntity]:
    """What the jobs ran on: a value per property and machine of another kind."""
    keys = ("processor", "processors", "memory_mb", "gpus", "threads")
    kinds = sorted({tuple((key, _text(record[key])) for key in keys) for record in records})
    for number, kind in enumerate(kinds):
        for name, value in kind:
            yield _entity(crate, f"#machine-{number}-{name}", "PropertyValue", name=name, value=value)


def _images(crate: ROCrate, records: Iterable[Mapping[str, Any]]) -> Iterable[ContextEntity]:
    """Container images that jobs ran in, by digest."""
    for image in sorted({record["container"] for record in records} - {None}):
        if not Path(image).is_file():
            raise FileNotFoundError(f"{image}: jobs ran in this image, but it is not there now to take its digest")
        kind = {"@id": f"{TERMS}SIFImage"}
        digest = reproduce.sha256_file(image)
        yield _entity(
            crate, f"#image-{digest[:12]}", "ContainerImage", additionalType=kind, name=Path(image).name, sha256=digest
        )


def _add_file(crate: ROCrate, source: Path, target: str, *, sha256: str | None = None, **properties: Any) -> File:
    """A file of the crate; refused where its digest is not the one that is given."""
    found = reproduce.sha256_file(source)
    if sha256 not in (None, found):
        raise ValueError(f"{source}: changed after MANIFEST.sha256 was written; build the study again, then the crate")
    kind = FORMATS.get(source.suffix, "text/plain")
    properties = {"name": target, "encodingFormat": kind, "sha256": found} | properties
    properties["contentSize"] = str(source.stat().st_size)
    return crate.add_file(source, target, properties=properties)


def _parameter(crate: ROCrate, name: str, kind: str, meaning: str, example: Any) -> ContextEntity:
    """A parameter of the workflow and the value that it had."""
    parameter = crate.add_formal_parameter(name, kind, identifier=f"#parameter-{name}", description=meaning)
    parameter["workExample"] = example
    example["exampleOfWork"] = parameter
    return parameter


def _entity(crate: ROCrate, identifier: str, kind: str, **properties: Any) -> ContextEntity:
    return crate.add(ContextEntity(crate, identifier, properties={"@type": kind} | properties))


def _package(name: str, version: str) -> str:
    """Package URL."""
    return f"pkg:{'generic' if name == 'python' else 'pypi'}/{name}@{quote(version)}"


def _text(value: Any) -> str:
    return (", ".join(value) or "none") if isinstance(value, list) else str(value)


def _zip(tree: Path, target: Path) -> None:
    """Pack a folder; equal files give equal bytes, because names are sorted and the times in the archive are fixed."""
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(path for path in tree.rglob("*") if path.is_file()):
            member = zipfile.ZipInfo(path.relative_to(tree).as_posix())
            member.compress_type, member.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            with path.open("rb") as source, archive.open(member, "w", force_zip64=True) as packed:
                shutil.copyfileobj(source, packed)
