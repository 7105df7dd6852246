"""A small study built, made into a crate, validated, and rebuilt from it by the commands of docs/reproduce.md."""

import json
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import yaml
from foreign_crates import Forgery

from saeflow import record, reproduce
from saeflow.config.reading import load
from saeflow.config.sections import ConfigError
from saeflow.publish import crate_layout as layout
from saeflow.publish import reproduction

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Workshop:
    """A copy of the project, the small study in it, and the folder that its crate is rebuilt in."""

    root: Path
    study: Path
    again: Path

    def make(self, *arguments: object, check: bool = True) -> str:
        """What make in the copy says, with this environment; its output is in the failure message."""
        venv = f"VENV={sys.prefix}"
        # The environment is there: `-o` takes it as it is.
        command = ["make", "-o", f"{sys.prefix}/.locked", venv, "CORES=2", *map(str, arguments)]
        run = subprocess.run(command, cwd=self.root, capture_output=True, text=True, timeout=900)
        assert (run.returncode == 0) is check, run.stdout[-4000:] + run.stderr[-8000:]
        return run.stdout + run.stderr

    @property
    def crate(self) -> Path:
        return self.root / "results" / "smoke.crate.zip"


@pytest.fixture(scope="module")
def workshop(tmp_path_factory) -> Workshop:
    """The smoke study cut down to one network and one SAE, built by `make crate`."""
    root = tmp_path_factory.mktemp("project")
    for name in layout.project_files(ROOT):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, root / name)
    study = yaml.safe_load((ROOT / "config/studies/smoke.yaml").read_text())
    del study["injection"], study["saes"]["variants"]["relu"]
    study["classifiers"] |= {"architectures": ["SimpleNN"], "seeds": [0], "roles": {"full": {"classes": [0, 1, 2, 3]}}}
    study["saes"]["training"] |= {"steps": 100}
    path = root / "small.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    workshop = Workshop(root, path, tmp_path_factory.mktemp("again"))
    workshop.make("crate", f"STUDY={path}")
    return workshop


@pytest.fixture(scope="module")
def rebuilt(workshop) -> str:
    """What `make reproduce` said."""
    return workshop.make("reproduce", f"CRATE={workshop.crate}", f"INTO={workshop.again}")


@pytest.fixture
def opened(workshop, tmp_path) -> Path:
    """The crate unpacked, for a test to spoil."""
    with zipfile.ZipFile(workshop.crate) as archive:
        archive.extractall(tmp_path / "crate")
    return tmp_path / "crate"


@pytest.fixture(scope="session")
def validator() -> str:
    """Interpreter of the environment with the validator of RO-Crates."""
    command = [sys.executable, ROOT / "benchmarks" / "environments.py", "create", "rocrate-validator"]
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"roc-validator cannot be installed here: {made.stderr.strip().splitlines()[-1]}")
    return made.stdout.strip()


def test_the_crate_conforms_to_the_profile_of_workflow_runs(workshop, validator, tmp_path):
    command = [validator, HERE / "validate_crate.py", workshop.crate, tmp_path]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    unmet = {tuple(issue) for issue in json.loads(run.stdout)}
    # Who publishes a study is not known to it, and its packages are named by package URL, not by a web page.
    recommended = ("url", "absolute URI", "agent", "`author`", "`publisher`")
    assert {issue for issue in unmet if issue[0] != "RECOMMENDED"} == set()
    assert {issue for issue in unmet if not any(word in issue[2] for word in recommended)} == set()


def test_a_crate_that_lacks_its_main_entity_does_not_conform(opened, validator, tmp_path):
    (opened / "Snakefile").unlink()
    command = [validator, HERE / "validate_crate.py", opened, tmp_path]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "REQUIRED" in {severity for severity, _, _ in json.loads(run.stdout)}


def test_the_crate_holds_settings_locks_versions_machine_and_digests(workshop, opened):
    assert load(opened / layout.STUDY_FILE) == load(workshop.study)
    results = workshop.root / "results" / "smoke"
    assert (opened / layout.MANIFEST).read_bytes() == (results / "MANIFEST.sha256").read_bytes()
    assert (opened / "study" / "report.html").read_bytes() == (results / "report.html").read_bytes()
    for lock in (ROOT / "envs").glob("*.lock"):
        assert (opened / "envs" / lock.name).read_bytes() == lock.read_bytes()
    entities = {entity["@id"]: entity for entity in json.loads((opened / layout.METADATA).read_text())["@graph"]}
    versions = {e["name"]: e["softwareVersion"] for e in entities.values() if e["@type"] == "SoftwareApplication"}
    assert versions == record.versions()
    assert entities["#machine-0-processor"]["value"] == record.processor()
    assert entities["#value-seed"]["value"] == 0
    jobs = record.read(results / "logs")
    action = entities["#run"]
    assert action["startTime"] == min(job["started"] for job in jobs)
    assert action["startTime"] < action["endTime"]
    assert str(workshop.root) not in (opened / layout.METADATA).read_text()


def test_a_second_crate_of_one_build_has_the_same_bytes(workshop):
    before = workshop.crate.read_bytes()
    workshop.crate.unlink()
    workshop.make("crate", f"STUDY={workshop.study}")
    assert workshop.crate.read_bytes() == before


def test_the_study_of_a_crate_is_rebuilt_to_the_same_bytes(workshop, rebuilt):
    n_files = len(reproduce.read_manifest(workshop.root / "results/smoke/MANIFEST.sha256"))
    assert "study 'smoke', to be compared byte by byte" in rebuilt
    assert f"equal: {n_files} the same, 0 different, 0 missing, 0 unexpected" in rebuilt
    assert (workshop.again / "results/smoke/saes").is_dir()


def test_crates_of_two_builds_differ_in_dates_and_machines_alone(workshop, rebuilt):
    snakemake = [sys.executable, "-m", "snakemake", "crate", "--cores", "2", "--directory", workshop.again]
    study = ["--configfile", workshop.again / "study.yaml"]
    subprocess.run([*snakemake, *study], cwd=workshop.root, check=True, capture_output=True)
    with zipfile.ZipFile(workshop.crate) as a, zipfile.ZipFile(workshop.again / "results/smoke.crate.zip") as b:
        assert a.namelist() == b.namelist()
        assert {name for name in a.namelist() if a.read(name) != b.read(name)} == {layout.METADATA}


def test_a_rebuilt_study_is_compared_table_by_table_on_request(workshop, rebuilt):
    said = workshop.make("reproduce", f"CRATE={workshop.crate}", f"INTO={workshop.again}", "COMPARE=tables")
    n_tables = len(list((workshop.again / "results/smoke").rglob("*.parquet")))
    assert f"equal: {n_tables} the same" in said


def test_a_crate_that_calls_every_number_equal_is_compared_within_the_projects_tolerances(workshop, rebuilt, tmp_path):
    forgery = Forgery(workshop.crate, tmp_path / "forgery")
    path = forgery.root / "study/tables/saes_summary.parquet"
    table = pd.read_parquet(path)
    table.loc[0, "l0"] *= 2
    table.to_parquet(path)
    forgery.study({"verify.rtol": 1.0})
    forgery.seal()
    arguments = ("reproduce", f"CRATE={forgery.root}", f"INTO={workshop.again}", "COMPARE=tables")
    said = workshop.make(*arguments, check=False)
    assert "the crate asks for 1 relative tolerance, 1e-06 absolute, which is not taken" in said
    assert "different   tables/saes_summary.parquet: column l0" in said
    said = workshop.make(*arguments, "RTOL=1")
    assert "0 different" in said
    assert "tables within 1e-06 + 1 |reference|" in said


def test_the_report_of_a_built_study_is_an_archive(workshop):
    workshop.make("report", f"STUDY={workshop.study}")
    with zipfile.ZipFile(workshop.root / "results" / "smoke.report.zip") as archive:
        assert any(name.endswith("report.html") for name in archive.namelist())
    said = workshop.make("report", "STUDY=config/studies/quick.yaml", check=False)
    assert "results/quick is not built: make study STUDY='config/studies/quick.yaml'" in said


def test_another_machine_is_compared_table_by_table_and_told_why(workshop, tmp_path, monkeypatch):
    assert reproduction.receive(workshop.crate, tmp_path / "same").endswith("byte by byte")
    monkeypatch.setattr(record, "processor", lambda: "abacus")
    said = reproduction.receive(workshop.crate, tmp_path / "other")
    assert "table by table, 0.001 relative tolerance" in said
    assert "processor abacus, in the crate" in said
    study = load(tmp_path / "other" / "study.yaml")
    assert study.reference == str((tmp_path / "other" / "crate" / "study").resolve())


def spoil(opened: Path, name: str, content: str | None) -> None:
    path = opened / name
    path.unlink()
    if content is not None:
        path.write_text(content)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("ro-crate-metadata.json", None, "no ro-crate-metadata.json in it"),
        ("ro-crate-metadata.json", "{", "cannot be read as the metadata of a workflow's RO-Crate"),
        ("ro-crate-metadata.json", '{"@graph": []}', "cannot be read as the metadata of a workflow's RO-Crate"),
        (
            "ro-crate-metadata.json",
            '{"@graph": [{"@id": "./", "mainEntity": {"@id": "main.nf"}}]}',
            "entity is main.nf",
        ),
        ("study/study.yaml", None, "study.yaml: missing"),
        ("study/MANIFEST.sha256", None, "MANIFEST.sha256: missing"),
        ("study/tables/saes.csv", "1\n", "different   tables/saes.csv"),
        ("study/report.html", None, "missing     report.html"),
        ("envs/requirements.lock", "numpy==1\n", "these files differ: envs/requirements.lock"),
        ("scripts/saeflow/rule.py", "", "these files differ: scripts/saeflow/rule.py"),
        ("Makefile", None, "the crate is incomplete"),
    ],
)
def test_a_crate_that_cannot_be_rebuilt_is_refused(opened, tmp_path, name, content, said):
    spoil(opened, name, content)
    with pytest.raises(reproduction.CrateError, match="(?s)" + said):
        reproduction.receive(opened, tmp_path / "again")
    assert not (tmp_path / "again" / "study.yaml").exists()


def test_a_crate_whose_study_was_altered_is_refused(opened, tmp_path):
    spoil(opened, "study/study.yaml", "study: smoke\nseeed: 1\n")
    with pytest.raises(reproduction.CrateError, match=r"different   study/study\.yaml"):
        reproduction.receive(opened, tmp_path / "again")


def test_a_folder_of_data_is_refused_for_a_study_that_takes_none(opened, tmp_path):
    with pytest.raises(ConfigError, match="data_dir: '/data' is of no use to 'digits'"):
        reproduction.receive(opened, tmp_path / "again", data_dir="/data")


def test_the_command_tells_what_is_wrong_without_a_traceback(opened, tmp_path):
    spoil(opened, "study/MANIFEST.sha256", "nonsense\n")
    command = [sys.executable, "-m", "saeflow.publish.reproduction", opened, tmp_path / "again"]
    run = subprocess.run(command, cwd=ROOT / "scripts", capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr.startswith("This crate cannot be rebuilt here:")
    assert "MANIFEST.sha256, line 1: expected" in run.stderr


def test_what_is_no_crate_is_refused(workshop, tmp_path):
    with pytest.raises(reproduction.CrateError, match="no such file or folder"):
        reproduction.receive(tmp_path / "lost.zip", tmp_path)
    with pytest.raises(reproduction.CrateError, match="neither a folder nor a zip"):
        reproduction.receive(workshop.study, tmp_path)
    (tmp_path / "crate").mkdir()
    (tmp_path / "crate" / layout.METADATA).write_text("another")
    with pytest.raises(reproduction.CrateError, match="holds another crate"):
        reproduction.receive(workshop.crate, tmp_path)
