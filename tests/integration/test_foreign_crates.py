"""Attacks by crate: whatever somebody else's archive holds, nothing of it runs, and nothing is sent or written outside.

Each attack is sealed, its digests made to fit again: digests tell damage, not intent.
"""

import json
import os
import random
import shutil
import socket
import stat
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from audit.sitecustomize import watching
from foreign_crates import Forgery, write
from safetensors.torch import save_file

from saeflow.config.reading import load, parse
from saeflow.config.sections import ConfigError
from saeflow.config.study import Tolerances
from saeflow.publish import crate_archive, crate_metadata, reproduction
from saeflow.publish import crate_layout as layout
from saeflow.publish.crate_metadata import CrateError

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
TEXT, MODEL, CONCEPTS = "language.text.folder", "language.models.m.folder", "language.concepts.files"


def model_folder(folder: Path, code: str = "") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil"}}')
    save_file({"w": torch.zeros(2)}, folder / "model.safetensors")
    (folder / "evil.py").write_text(code)
    return folder


@pytest.fixture(scope="module")
def makers(tmp_path_factory) -> dict[str, object]:
    """The files that the maker of the study has: a model, text, concepts."""
    folder = tmp_path_factory.mktemp("maker")
    (folder / "texts").mkdir()
    (folder / "texts" / "a.txt").write_text("one document")
    files = {TEXT: folder / "texts", MODEL: model_folder(folder / "model")}
    for name in ("legal", "medical"):
        (folder / f"{name}.txt").write_text(f"a {name} sentence\n")
    return {key: str(path) for key, path in files.items()} | {
        CONCEPTS: [str(folder / "legal.txt"), str(folder / "medical.txt")]
    }


@pytest.fixture(scope="module")
def crates(tmp_path_factory, makers) -> dict[str, Path]:
    """A crate of a study of images and of one of a language model, honestly made."""
    folder = tmp_path_factory.mktemp("crates")
    language = {
        "models": {"m": {"folder": makers[MODEL], "hook_points": ["model.layers.0"]}},
        "text": {"folder": makers[TEXT]},
        "concepts": {"files": makers[CONCEPTS]},
        "saes": {"variants": {"a": {"architecture": "topk", "d_sae": 8, "k": 2}}},
    }
    endpoint = {"url": "https://models.example/v1", "model": "m"}
    embedded = {"models": {"m": {"embedded": {}, "hook_points": ["model.layers.0"]}}, "saes": language["saes"]}
    studies = {
        "images": {},
        "language": {"classifiers": {"architectures": []}, "language": language},
        "endpoint": {
            "classifiers": {"architectures": []},
            "language": embedded,
            "inversion": {"explanation": {"endpoint": endpoint}},
        },
    }
    return {name: write(parse({"study": name} | content), folder) for name, content in studies.items()}


@pytest.fixture
def forge(crates, tmp_path):
    """A crate of ours to change: 'images' or 'language'."""
    return lambda name="images": Forgery(crates[name], tmp_path / "forgery")


@pytest.fixture
def again(tmp_path) -> Path:
    return tmp_path / "again"


def refused(crate: Path, again: Path, said: str, **wishes: object) -> None:
    """The crate is refused for this reason, before anything is done outside of the folder to build in."""
    with watching() as notes, pytest.raises((CrateError, ConfigError, ValueError), match="(?s)" + said) as error:
        reproduction.receive(crate, again, **wishes)
    inside = (f"write {again.resolve()}", f"write {again.resolve().parent}/.crate-", "exec ")
    assert [note for note in notes if not note.startswith(inside)] == []
    assert [note for note in notes if note.startswith("exec ") and str(crate.parent.resolve()) in note] == []
    assert not (again / "study.yaml").exists()
    assert "Traceback" not in str(error.value)
    assert len(str(error.value)) < 5000


def test_the_watch_of_these_tests_sees_what_is_run_sent_and_written(tmp_path):
    with watching() as notes:
        (tmp_path / "x").write_text("x")
        subprocess.run(["true"], check=True)
        exec(compile("1", str(tmp_path / "code.py"), "exec"))
        with socket.socket() as outward, pytest.raises(ConnectionRefusedError):
            outward.connect(("127.0.0.1", 9))
    assert {note.split()[0] for note in notes} >= {"write", "run", "exec", "send"}


def test_honest_crates_are_received(crates, makers, tmp_path):
    assert "byte by byte" in reproduction.receive(crates["images"], tmp_path / "a")
    said = reproduction.receive(crates["language"], tmp_path / "b", files=makers)
    assert "byte by byte" in said
    study = load(tmp_path / "b" / "study.yaml")
    assert study.language.models["m"].folder == makers[MODEL]
    assert list(study.language.concepts.files) == makers[CONCEPTS]
    with zipfile.ZipFile(crates["language"]) as archive:
        maker = str(Path(makers[MODEL]).parent)
        assert not any(maker.encode() in archive.read(name) for name in archive.namelist())


# What the study of a crate may not do.


OUTSIDE = ["crate/model", "/etc", "../../x", "~/x", "$HOME/x", "crate/study", "inputs/other"]


@pytest.mark.parametrize(
    ("key", "many", "path"),
    [
        *((TEXT, False, path) for path in OUTSIDE),
        *((key, key == CONCEPTS, "crate/study") for key in (MODEL, CONCEPTS, "dataset.data_dir", "reference")),
    ],
)
def test_a_study_that_leads_to_a_file_is_refused(forge, again, makers, key, many, path):
    forgery = forge("language")
    changes = {key: [path, "b"] if many else path}
    forgery.study(changes | ({"dataset.name": "mnist"} if key == "dataset.data_dir" else {}))
    forgery.seal()
    refused(forgery.root, again, f"{key} leads to .*{path.replace('$', '.')}", files=makers)


def test_a_study_with_a_hierarchy_of_its_own_is_refused(forge, again):
    forgery = forge("endpoint")
    forgery.study({"language.text.hierarchy": "crate/study/evil.yaml"})
    forgery.seal()
    refused(forgery.root, again, "language.text.hierarchy leads to")


def test_a_crate_does_not_switch_on_code_beside_a_model(forge, again, makers, tmp_path):
    forgery = forge("language")
    forgery.study({"language.models.m.trust_remote_code": True})
    forgery.seal()
    refused(forgery.root, again, r"m\.trust_remote_code: .*TRUST_REMOTE_CODE=1", files=makers)
    # Who says so may; the code is that of their own folder, and as the maker had it.
    refused(
        forgery.root, again, r"unexpected  language\.models\.m\.folder/evil\.py", files=makers, trust_remote_code=True
    )
    honest = parse(
        yaml.safe_load((forgery.root / layout.STUDY_FILE).read_text())
        | {"study": "trusting"}
        | {"language": {**_section(makers), "saes": {"variants": {"a": {"architecture": "topk", "d_sae": 8, "k": 2}}}}}
    )
    crate = write(honest, tmp_path)
    refused(crate, again, "trust_remote_code", files=makers)
    said = reproduction.receive(crate, again, files=makers, trust_remote_code=True)
    assert "language.models.m: runs Python code that lies beside it, as you allowed" in said


def _section(makers):
    model = {"folder": makers[MODEL], "hook_points": ["model.layers.0"], "trust_remote_code": True}
    return {"models": {"m": model}, "text": {"folder": makers[TEXT]}, "concepts": {"files": makers[CONCEPTS]}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("__use_yte__: true\nstudy: ?__import__('os').mkdir('ran')\n", "__use_yte__"),
        ("study: !!python/object/apply:os.mkdir ['ran']\n", ""),
        ("study: s\nworkflow: evil.smk\n", "workflow"),
        ("study: ../../outside\n", "study"),
        ("study: s\nlanguage: {text: {dataset: ../x, revision: main}}\n", "language"),
        (
            "study: s\ninversion: {explanation: {endpoint: {url: 'https://h', model: m, key_variable: HF_TOKEN}}}\n",
            "key_var",
        ),
        ("[" * 100_000, ""),
        ("a: " + "9" * 1_000_000, ""),
        ("\x00", ""),
        ("x" * 5_000_000, "more bytes than any study"),
    ],
    ids=[
        "template engine",
        "object",
        "key",
        "name",
        "hub name",
        "key of a host",
        "nested",
        "number",
        "nul",
        "huge",
    ],
)
def test_a_study_that_is_none_is_refused(forge, again, text, said):
    forgery = forge()
    (forgery.root / layout.STUDY_FILE).write_text(text)
    forgery.seal()
    refused(forgery.root, again, said)
    assert not Path("ran").exists()


def test_a_study_that_was_altered_is_no_longer_the_crates(forge, again):
    forgery = forge()
    forgery.study({"seed": 1})
    refused(forgery.root, again, "altered since it was made.*different   study/study.yaml")


def test_tolerances_are_those_of_whoever_rebuilds_and_said(forge, again):
    forgery = forge()
    forgery.study({"verify.rtol": 1.0, "verify.atol": 1.0})
    forgery.seal()
    said = reproduction.receive(forgery.root, again, compare="tables")
    assert "table by table, 0.001 relative tolerance, 1e-06 absolute" in said
    assert "the crate asks for 1 relative tolerance, 1 absolute, which is not taken" in said
    assert load(again / "study.yaml").verify == Tolerances()
    reproduction.receive(forgery.root, again, compare="tables", rtol=0.1)
    assert load(again / "study.yaml").verify.rtol == 0.1


# What changes results is compared.


@pytest.mark.parametrize(
    "name",
    [
        "config/concepts/hierarchy.yaml",
        "config/concepts/texts/formal.txt",
        "envs/requirements.lock",
        "envs/publish.yaml",
        "scripts/saeflow/config/study.py",
        "scripts/sitecustomize.py",
        "workflow/profiles/local/profile.yaml",
        "workflow/report/table.rst",
        "containers/saeflow.def",
        "Makefile",
        "Snakefile",
    ],
)
def test_a_crate_of_another_project_is_refused_file_by_file(forge, again, name):
    forgery = forge()
    path = forgery.root / name
    path.write_text((path.read_text() if path.exists() else "") + "\n# other\n")
    forgery.seal()
    refused(forgery.root, again, f"these files differ: {name}\n.*runs code out of the archive")


@pytest.mark.parametrize(
    "name", ["scripts/evil.pth", "scripts/saeflow/x.so", ".venv/bin/python", "a.txt", "study/evil.py"]
)
def test_a_file_that_no_crate_holds_is_refused(forge, again, name):
    forgery = forge()
    (forgery.root / name).parent.mkdir(parents=True, exist_ok=True)
    (forgery.root / name).write_text("import os; os.mkdir('ran')")
    undeclared = forgery.pack(again.with_suffix(".zip"))
    refused(undeclared, again, f"holds '{name}', which its ro-crate-metadata.json does not declare")
    if not name.startswith("study/"):  # else it is one more result
        forgery.seal()
        refused(forgery.root, again, f"missing     {name}")


def test_other_studies_and_prose_may_differ(forge, again):
    forgery = forge()
    for name in ("config/studies/quick.yaml", "README.md", "config/config.yaml"):
        (forgery.root / name).write_text("study: other\n")
    forgery.seal()
    assert "to be compared" in reproduction.receive(forgery.root, again)


@pytest.mark.parametrize(
    ("key", "file", "said"),
    [
        (MODEL, "model.safetensors", "different   language.models.m.folder/model.safetensors"),
        (MODEL, "tokenizer.json", "unexpected  language.models.m.folder/tokenizer.json"),
        (TEXT, "a.txt", "different   language.text.folder/a.txt"),
        (TEXT, "b.txt", "unexpected  language.text.folder/b.txt"),
        (CONCEPTS, "legal.txt", "different   language.concepts.files/legal.txt"),
    ],
)
def test_files_other_than_the_makers_are_named_before_any_work(crates, again, makers, tmp_path, key, file, said):
    own = tmp_path / "own"
    if key == CONCEPTS:
        own.mkdir()
        shutil.copy2(makers[CONCEPTS][1], own)
        files = {key: [str(own / file), str(own / "medical.txt")]}
    else:
        shutil.copytree(makers[key], own)
        files = {key: str(own)}
    if file.endswith(".safetensors"):
        save_file({"w": torch.ones(2)}, own / file)
    else:
        (own / file).write_text("{}")
    refused(crates["language"], again, said, files=makers | files)


def test_files_that_nobody_gave_are_asked_for(crates, again, makers):
    refused(crates["language"], again, f'{CONCEPTS}, {MODEL}, {TEXT}: .*FILES="{CONCEPTS}=PATH')
    refused(crates["language"], again, "is no folder", files=makers | {TEXT: "nowhere"})
    refused(
        crates["language"], again, "nowhere.txt: cannot be read", files=makers | {CONCEPTS: ["nowhere.txt", "b.txt"]}
    )
    refused(crates["images"], again.parent / "other", "x.y: the study names no file by this key", files={"x.y": "z"})
    assert reproduction._files("a.b=/x y/z c.d=/1 c.d=/2") == {"a.b": "/x y/z", "c.d": ["/1", "/2"]}


# What an archive may not hold.


def member(name: str, *, mode: int = stat.S_IFREG | 0o644) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo("placeholder")
    entry.filename, entry.external_attr = name, mode << 16
    return entry


ENTRIES = {
    "absolute": member("/etc/evil"),
    "above": member("../evil"),
    "above inside": member("study/../../evil"),
    "backslash": member("study\\..\\evil"),
    "drive": member("C:evil"),
    "control": member("study/\x1b[2Jevil"),
    "right to left": member("study/\u202eexe.txt"),
    "long": member("study/" + "x" * 5000),
    "dot": member("./study/evil"),
    "empty part": member("study//evil"),
    "link": member("study/link", mode=stat.S_IFLNK | 0o777),
    "device": member("study/device", mode=stat.S_IFCHR | 0o644),
    "pipe": member("study/pipe", mode=stat.S_IFIFO | 0o644),
    "folder that is a link": member("study/link/", mode=stat.S_IFLNK | 0o777),
    "twice": member("study/study.yaml"),
    "case": member("study/STUDY.yaml"),
    "in a file": member("study/study.yaml/evil"),
    "undeclared": member("study/evil.yaml"),
    "nested": member("study/inner.zip"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("attack", ENTRIES)
def test_an_entry_that_no_crate_has_is_refused_and_nothing_is_unpacked(crates, again, tmp_path, attack):
    crate = shutil.copy2(crates["images"], tmp_path / "evil.zip")
    with zipfile.ZipFile(crate, "a") as archive:
        archive.writestr(ENTRIES[attack], b"/etc/passwd")
    refused(crate, again, "not to be trusted|no name of a file|holds files alone|does not declare|twice")
    assert not again.exists() or not list(again.iterdir())


def test_an_entry_that_is_declared_stays_inside_too(forge, again):
    forgery = forge()
    content = forgery.metadata()
    content["@graph"].append({"@id": "../evil", "@type": "File", "sha256": "0" * 64})
    forgery.declare(content)
    refused(forgery.root, again, "'../evil' is no name of a file in a crate")


def test_an_encrypted_crate_is_refused(crates, again, tmp_path):
    content = bytearray(crates["images"].read_bytes())
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = content.find(mark)
        content[start + flags] |= 1
    (tmp_path / "evil.zip").write_bytes(content)
    refused(tmp_path / "evil.zip", again, "is encrypted")


def test_a_crate_that_unpacks_without_end_is_refused_at_once(crates, forge, again, tmp_path, monkeypatch):
    bomb = shutil.copy2(crates["images"], tmp_path / "bomb.zip")
    with zipfile.ZipFile(bomb, "a", zipfile.ZIP_DEFLATED) as archive, archive.open("study/zeros.bin", "w") as file:
        for _ in range(200):
            file.write(bytes(1 << 20))
    refused(bomb, again, "unpacks to .* times its size")
    refused(crates["images"], again, r"unpacks to .* GiB, more than 0\.001; MOST_GIB", most_gib=0.001)
    # A header that tells less than there is: no more is read than it says.
    forgery = forge()
    (forgery.root / "study" / "zeros.bin").write_bytes(bytes(1 << 22))
    forgery.seal()
    liar = bytearray(forgery.pack(tmp_path / "liar.zip").read_bytes())
    start = liar.rfind(b"study/zeros.bin") - 46
    liar[start + 24 : start + 28] = (10).to_bytes(4, "little")
    (tmp_path / "liar.zip").write_bytes(liar)
    refused(tmp_path / "liar.zip", again, "damaged|altered")
    monkeypatch.setattr(crate_archive, "_MOST_ENTRIES", 10)
    refused(crates["images"], again, "no crate has more than 10")


def test_links_in_an_unpacked_crate_are_refused(forge, again, tmp_path):
    forgery = forge()
    report = forgery.root / "study" / "report.html"
    shutil.copy2(report, tmp_path / "same.html")
    report.unlink()
    report.symlink_to(tmp_path / "same.html")
    refused(forgery.root, again, "report.html: a link or a device")
    report.unlink()
    os.mkfifo(report)
    refused(forgery.root, again, "report.html: a link or a device")
    shutil.rmtree(forgery.root / "study" / "tables")
    (forgery.root / "study" / "tables").symlink_to(tmp_path)
    refused(forgery.root, again, "a link or a device")


@pytest.mark.parametrize("put", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "endless link"])
def test_what_never_ends_among_the_workflow_is_refused(forge, again, put):
    forgery = forge()
    put(forgery.root / "scripts" / "endless.py")
    refused(forgery.root, again, "endless.py: a link or a device")


def test_a_crate_is_not_built_in_itself(crates, forge):
    root = forge().root
    with pytest.raises(CrateError, match="is the crate itself"):
        reproduction.receive(root, root)


# Damage is a sentence.


def outcome(crate: Path, again: Path) -> str:
    """What the command says of a crate: its sentence, or that it is to be built."""
    try:
        return reproduction.receive(crate, again)
    except (CrateError, ValueError) as error:
        return f"refused: {error}"


def test_whatever_bit_of_a_crate_flips_the_answer_is_a_sentence(crates, tmp_path):
    whole = crates["images"].read_bytes()
    draw = random.Random(0)
    directory = whole.rindex(b"PK\x05\x06") - 20_000
    places = [draw.randrange(len(whole)) for _ in range(40)]
    places += [draw.randrange(directory, len(whole)) for _ in range(40)]
    places += [place + draw.randrange(30) for place in draw.sample([*_starts(whole)], 20)]
    answers = []
    for number, place in enumerate(places):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << draw.randrange(8)
        (tmp_path / "crate.zip").write_bytes(flipped)
        answers.append(outcome(tmp_path / "crate.zip", tmp_path / str(number)))
    assert max(map(len, answers)) < 5000
    assert sum(answer.startswith("refused") for answer in answers) > len(places) / 2
    # What is taken in spite of it has a flipped date or flag: every file has its digest.
    assert all("byte by byte" in answer for answer in answers if not answer.startswith("refused"))


def _starts(archive: bytes):
    start = archive.find(b"PK\x03\x04")
    while start >= 0:
        yield start
        start = archive.find(b"PK\x03\x04", start + 4)


def test_a_crate_that_is_cut_off_is_a_sentence(crates, tmp_path):
    whole = crates["images"].read_bytes()
    for length in (0, 1, 22, 1000, len(whole) // 2, len(whole) - 100, len(whole) - 1):
        (tmp_path / "crate.zip").write_bytes(whole[:length])
        assert outcome(tmp_path / "crate.zip", tmp_path / "again").startswith("refused")


@pytest.mark.parametrize("name", [*layout.BESIDE, layout.METADATA, "study/tables/saes.parquet", "envs/uv.lock"])
def test_whatever_bit_of_an_unpacked_crate_flips_the_answer_is_a_sentence(forge, tmp_path, name):
    forgery, draw = forge("language"), random.Random(1)
    whole = (forgery.root / name).read_bytes()
    for number in range(8):
        flipped = bytearray(whole)
        flipped[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        (forgery.root / name).write_bytes(flipped)
        answer = outcome(forgery.root, tmp_path / str(number))
        assert answer.startswith("refused")
    (forgery.root / name).unlink()
    assert outcome(forgery.root, tmp_path / "again").startswith("refused")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b"\xff",
        b'{"@graph": 3}',
        b'{"@graph": [3]}',
        b'{"@graph": [{"@id": []}]}',
        b"[" * 10**6,
    ],
    ids=lambda content: ascii(content[:30]),
)
def test_metadata_that_is_none_is_a_sentence(content):
    with pytest.raises(CrateError, match="cannot be read as the metadata of a workflow's RO-Crate"):
        crate_metadata.read(content)


def test_metadata_with_keys_missing_or_of_another_kind_is_a_sentence(forge):
    graph, draw = forge().metadata()["@graph"], random.Random(2)
    few = [e for e in graph if e["@type"] != "File"] + [e for e in graph if e["@type"] == "File"][:3]
    for _ in range(300):
        entities = [dict(entity) for entity in few]
        entity = draw.choice(entities)
        key = draw.choice(sorted(entity))
        entity[key] = draw.choice([None, 3, [], {}, "x", [None], {"@id": 3}, True, "\x1b[2J"])
        if draw.random() < 0.3:
            del entity[key]
        try:
            crate_metadata.read(json.dumps({"@graph": entities}).encode())
        except CrateError as error:
            assert "\x1b" not in str(error)  # noqa: PT017  (it may be raised, or not)
    without = [entity for entity in graph if not entity["@id"].endswith("-gpus")]
    with pytest.raises(CrateError, match="does not say on which gpus the study ran"):
        crate_metadata.read(json.dumps({"@graph": without}).encode())


def test_tables_that_cannot_be_compared_are_told_before_any_work(forge, again):
    forgery = forge()
    (forgery.root / "study/tables/saes.parquet").write_bytes(b"PAR1 no table PAR1")
    forgery.seal()
    refused(forgery.root, again, r"saes\.parquet: no Parquet table", compare="tables")


# The whole command.


def make(tmp_path: Path, *arguments: str, **environment: str) -> tuple[int, str, list[str]]:
    """Status and words of `make reproduce`, and what its processes ran, sent and wrote outside of their own folders."""
    home = tmp_path / "home"
    (home / "tmp").mkdir(parents=True, exist_ok=True)
    audit = tmp_path / "audit.txt"
    audit.unlink(missing_ok=True)
    values = {"HOME": home, "TMPDIR": home / "tmp", "SAEFLOW_AUDIT": audit, "PYTHONPATH": HERE.parent / "audit"}
    values |= {"PYTHONDONTWRITEBYTECODE": "1", "HF_TOKEN": "hf_batterystaple0123", "XDG_CACHE_HOME": home / ".cache"}
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("SAEFLOW", "XDG", "HF_", "PYTHON"))
    }
    command = ["make", "-o", f"{sys.prefix}/.locked", f"VENV={sys.prefix}", "CORES=1", "reproduce", *arguments]
    run = subprocess.run(
        command,
        cwd=ROOT,
        env=kept | {k: str(v) for k, v in (values | environment).items()},
        capture_output=True,
        text=True,
    )
    own = (f"write {home.resolve()}", f"write {(tmp_path / 'again').resolve()}", "write /dev/")
    notes = audit.read_text().splitlines() if audit.exists() else []
    assert notes
    strange = [n for n in notes if not n.startswith((*own, "exec ", "run "))]
    crate = str((tmp_path / "again" / "crate").resolve())
    return (
        run.returncode,
        run.stdout + run.stderr,
        strange + [n for n in notes if n[:4] in ("exec", "run ") and crate in n],
    )


def test_code_beside_a_model_in_a_crate_does_not_run(forge, tmp_path):
    forgery = forge("language")
    model = model_folder(forgery.root / "study" / "model", f"import os; os.mkdir({str(tmp_path / 'ran')!r})")
    (model / "model.safetensors").unlink()  # which no crate holds
    forgery.study({"language.models.m.trust_remote_code": True, MODEL: "crate/study/model"})
    forgery.seal()
    crate = forgery.pack(tmp_path / "evil.zip")
    for more in ([], ["TRUST_REMOTE_CODE=1"], ["TRUST_REMOTE_CODE=1", f"FILES={TEXT}={tmp_path}"]):
        status, said, outside = make(tmp_path, f"CRATE={crate}", f"INTO={tmp_path / 'again'}", *more)
        assert status == 2
        assert "language.models.m.folder leads to crate/study/model" in said
        assert "Traceback" not in said
        assert outside == []
    assert not (tmp_path / "ran").exists()


def test_an_endpoint_that_the_environment_does_not_allow_is_sent_nothing(forge, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        asked: list[object] = []
        threading.Thread(target=lambda: asked.append(server.accept()), daemon=True).start()
        forgery = forge("endpoint")
        url = f"http://127.0.0.1:{server.getsockname()[1]}/v1"
        forgery.study({"inversion.explanation.endpoint.url": url})
        forgery.seal()
        crate = forgery.pack(tmp_path / "evil.zip")
        catalog = f"sqlite:///{tmp_path / 'catalog.sqlite'}"
        status, said, outside = make(
            tmp_path,
            f"CRATE={crate}",
            f"INTO={tmp_path / 'again'}",
            SAEFLOW_CATALOG_URL=catalog,
            SAEFLOW_TRACKERS="wandb",
        )
        assert status == 2
        assert "nothing is sent to a host that your environment does not allow" in said
        assert "hf_batterystaple0123" not in said
        assert [note for note in outside if not note.startswith("send ")] == []
        assert asked == []
    assert not (tmp_path / "catalog.sqlite").exists()
    assert not list((tmp_path / "again" / "results").rglob("*.parquet"))


def test_the_name_of_a_crate_is_not_run(crates, tmp_path):
    name = tmp_path / "$(shell touch ran) ;touch ran;`touch ran` 'x\".zip"
    shutil.copy2(crates["images"], name)
    with name.open("ab") as file:
        file.truncate(1000)
    status, said, outside = make(tmp_path, f"CRATE={name}", f"INTO={tmp_path / 'again'}")
    assert status == 2
    assert "neither a folder nor a zip archive" in said
    assert outside == []
    assert not (ROOT / "ran").exists()
