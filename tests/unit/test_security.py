"""Foreign files run no code, names stay inside the results, secrets stay in the environment."""

import ast
import json
import logging
import os
import pickle
import subprocess
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote, quote_plus

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from random_saes import random_sae
from safetensors.torch import save_file
from snakemake.common.configfile import load_configfile
from snakemake.exceptions import WorkflowError

import draw_feature_cards
from saeflow import command_line, rule
from saeflow.activations import ActivationStore, StoreError
from saeflow.catalog import database
from saeflow.config.reading import load, parse
from saeflow.config.saes import TopK, Training
from saeflow.config.sections import Architecture, ConfigError, HookPoint, Name
from saeflow.config.study import Study
from saeflow.datasets.images import DatasetError, ImageDataset
from saeflow.models import classifiers
from saeflow.models.language_files import snapshot_name
from saeflow.redaction import redact
from saeflow.sae import formats
from saeflow.sae.stack import Member
from saeflow.sae.trainer import train

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "scripts").rglob("*.py"))

# What runs code that lies in a file, or lets an archive write where it likes: modules, functions by their last two
# names, and arguments with their safe value.
FOREIGN = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "tarfile"}
RUNNERS = {"eval", "exec", "__import__", "os.system", "os.popen", "pd.read_pickle", "pandas.read_pickle"}
UNSAFE_YAML = {f"yaml.{name}" for name in ("load", "load_all", "full_load", "unsafe_load", "full_load_all")}
SAFE_VALUES = {"allow_pickle": False, "weights_only": True, "shell": False}
NEEDED = {"torch.load": "weights_only", "np.load": "allow_pickle", "numpy.load": "allow_pickle"}


def dangers(source: str) -> list[str]:
    """What in a module could run code from a file or take a remote one's, by name."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                found += [alias.name for alias in names if alias.name.partition(".")[0] in FOREIGN]
            case ast.ImportFrom(module=str(module)):
                found += [module] if module.partition(".")[0] in FOREIGN else []
            case ast.Call():
                whole = ast.unparse(node.func)
                name = ".".join(whole.split(".")[-2:])
                found += [name] if name in RUNNERS | UNSAFE_YAML or whole.startswith("torch.hub.") else []
                given_names = {keyword.arg for keyword in node.keywords}
                found += [name] if name in NEEDED and NEEDED[name] not in given_names else []
            case ast.keyword(arg=str(arg), value=value) if arg in SAFE_VALUES:
                found += [] if isinstance(value, ast.Constant) and value.value is SAFE_VALUES[arg] else [arg]
            # Only the study may say so: a key of its config, never a constant.
            case ast.keyword(arg="trust_remote_code", value=value) if not isinstance(value, ast.Subscript):
                found.append("trust_remote_code")
            case ast.Dict(keys=keys, values=values):
                for key, value in zip(keys, values, strict=True):
                    if isinstance(key, ast.Constant) and key.value == "trust_remote_code":
                        found += [] if isinstance(value, ast.Subscript) else ["trust_remote_code"]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT / "scripts").as_posix())
def test_no_module_runs_code_from_a_file(path):
    assert dangers(path.read_text()) == []


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("torch.load(path)", "torch.load"),
        ("torch.load(path, weights_only=False)", "weights_only"),
        ("import pickle", "pickle"),
        ("from joblib import load", "joblib"),
        ("np.load(path)", "np.load"),
        ("np.load(path, allow_pickle=cfg['pickle'])", "allow_pickle"),
        ("yaml.load(file, Loader=yaml.Loader)", "yaml.load"),
        ("pd.read_pickle(path)", "pd.read_pickle"),
        ("torch.hub.load('a/b', 'c')", "hub.load"),
        ("eval(text)", "eval"),
        ("subprocess.run(command, shell=True)", "shell"),
        ("import tarfile", "tarfile"),
        ("AutoModel.from_pretrained(name, trust_remote_code=True)", "trust_remote_code"),
        ("options = {'trust_remote_code': True}", "trust_remote_code"),
    ],
)
def test_the_scan_finds(source, name):
    assert name in dangers(source)


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path, weights_only=True)",
        "np.load(path, allow_pickle=False)",
        "yaml.safe_load(file)",
        "from_pretrained(name, trust_remote_code=cfg['trust_remote_code'])",
    ],
)
def test_the_scan_lets_pass(source):
    assert dangers(source) == []


class Payload:
    """Unpickled, it leaves a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def payload(tmp_path) -> Payload:
    payload = Payload(tmp_path / "it-ran")
    yield payload
    assert not payload.mark.exists()


def test_the_payload_of_these_tests_runs_where_it_is_let(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path / "it-ran")))
    assert (tmp_path / "it-ran").is_dir()


def as_npz(path: Path, payload: Payload) -> None:
    objects = np.empty(1, object)
    objects[0] = payload
    with path.open("wb") as file:
        np.savez(file, name=objects, n_classes=objects, train_images=objects)


def test_a_dataset_of_objects_is_refused(tmp_path, payload):
    as_npz(tmp_path / "d.npz", payload)
    with pytest.raises(DatasetError, match=r"d\.npz: no dataset of this project: Object arrays cannot be loaded"):
        ImageDataset.load(tmp_path / "d.npz")


def test_a_dataset_that_is_a_pickle_is_refused(tmp_path, payload):
    (tmp_path / "d.npz").write_bytes(pickle.dumps(payload))
    with pytest.raises(DatasetError, match=r"d\.npz: no dataset of this project"):
        ImageDataset.load(tmp_path / "d.npz")


def test_feature_arrays_of_objects_are_refused(tmp_path, payload, monkeypatch):
    as_npz(tmp_path / "f.npz", payload)
    monkeypatch.setattr(ImageDataset, "load", lambda _: None)
    first = dict.fromkeys(("architecture", "role", "hook_point", "variant", "seed", "sae_seed"), 0)
    monkeypatch.setattr(draw_feature_cards.pq, "read_table", lambda _: SimpleNamespace(to_pylist=lambda: [first]))
    with pytest.raises(ValueError, match="Object arrays cannot be loaded"):
        draw_feature_cards.main(
            dataset=tmp_path, arrays=tmp_path / "f.npz", table=tmp_path, cards=tmp_path, gallery=tmp_path
        )


@pytest.mark.parametrize("writer", [pickle.dump, torch.save], ids=["pickle", "torch"])
def test_an_sae_that_is_a_pickle_is_refused(tmp_path, payload, writer):
    formats.save(random_sae("topk"), tmp_path / "sae")
    with (tmp_path / "sae" / formats.WEIGHTS).open("wb") as file:
        writer({"W_enc": payload}, file)
    with pytest.raises(formats.FormatError, match=f"{formats.WEIGHTS}: truncated or not safetensors"):
        formats.load(tmp_path / "sae")


def test_a_classifier_that_is_a_pickle_is_refused(tmp_path, payload):
    path = tmp_path / "full.safetensors"
    classifiers.save(classifiers.StackedClassifier("FFN", (2, 2), 2), path, {"members": [{"seed": 0}]})
    with path.open("wb") as file:
        torch.save({"logits.bias": payload}, file)
    with pytest.raises(classifiers.ClassifierError, match=r"full\.safetensors: not the weights"):
        classifiers.load(path)


def test_a_checkpoint_that_is_a_pickle_is_not_taken_up(tmp_path, payload, caplog):
    path = tmp_path / "state.checkpoint"
    with path.open("wb") as file:
        torch.save({"state": payload}, file)
    spec = TopK(architecture="topk", d_sae=8, k=2)
    training = Training(steps=2, batch_size=8, warmup_steps=0, sparsity_warmup_steps=0)
    store = ActivationStore.from_array(torch.randn(16, 4, generator=torch.Generator().manual_seed(0)))
    train(store, [Member("a", spec, 0)], training, checkpoint=path)
    assert f"{path}: truncated or no checkpoint" in caplog.text


def test_tensors_of_another_name_are_not_loaded(tmp_path):
    formats.save(random_sae("topk"), tmp_path / "sae")
    save_file({"__reduce__": torch.zeros(1)}, tmp_path / "sae" / formats.WEIGHTS)
    with pytest.raises(formats.FormatError, match="is missing"):
        formats.load(tmp_path / "sae")


@pytest.mark.parametrize("name", ["../other", "/etc", "a/b", "..", "", ".", "a\0b"])
def test_a_manifest_leads_nowhere_but_into_its_store(tmp_path, name):
    with ActivationStore.create(tmp_path / "s", d=2) as writer:
        writer.append(torch.ones(4, 2))
    manifest = tmp_path / "s" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["parts"][0]["name"] = name
    manifest.write_text(json.dumps(content))
    with pytest.raises(StoreError, match=r"manifest\.json: not the manifest of an activation store"):
        ActivationStore.open(tmp_path / "s")


def study_file(tmp_path: Path, text: str) -> Path:
    (tmp_path / "study.yaml").write_text(text)
    return tmp_path / "study.yaml"


@pytest.mark.parametrize("tag", ["object/apply:os.mkdir", "object/new:os.mkdir"])
def test_a_study_with_a_python_object_is_refused_by_us_and_by_snakemake(tmp_path, tag):
    path = study_file(tmp_path, f"study: !!python/{tag} ['{tmp_path / 'it-ran'}']\n")
    with pytest.raises(ConfigError, match="line 1, column 8: the tag '!!python/object"):
        load(path)
    with pytest.raises(WorkflowError, match="not valid JSON or YAML"):
        load_configfile(path)
    assert not (tmp_path / "it-ran").exists()


def test_a_study_with_code_for_snakemakes_template_engine_is_refused_by_us_and_run_by_snakemake(tmp_path):
    """What docs/faults.md warns of; should Snakemake stop to do it, the warning can go."""
    path = study_file(tmp_path, f"__use_yte__: true\nstudy: ?__import__('os').mkdir('{tmp_path / 'it-ran'}') or 's'\n")
    with pytest.raises(ConfigError, match="__use_yte__: true under an unknown key"):
        load(path)
    assert not (tmp_path / "it-ran").exists()
    assert load_configfile(path) == {"study": "s"}
    assert (tmp_path / "it-ran").exists()


def test_make_study_reads_a_study_safely_before_snakemake_does():
    make = ["make", "--dry-run", "--always-make", "study", "STUDY=foreign.yaml"]
    recipe = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert 0 < recipe.index('-m saeflow.config "$STUDY"') < recipe.index('--configfile "$STUDY"')


OUTSIDE = ["../x", "/x", "x/y", "x\\y", "..", ".", "", "~", "x\0y", "x\n", "x" * 65, "%2e%2e"]
OUTSIDE += ["\uff58", "x\u2024\u2024", "x\u202ey"]  # full-width x, one-dot leaders, right-to-left override
NAMED = {
    "study": lambda name: {"study": name},
    "role": lambda name: {"classifiers": {"roles": {name: {"classes": [0, 1]}}}},
    "architecture": lambda name: {"classifiers": {"architectures": [name], "layers": {name: {"hidden": [4]}}}},
    "hook point": lambda name: {"activations": {"hook_points": [name]}},
    "SAE": lambda name: {"saes": {"variants": {name: {"architecture": "topk", "d_sae": 8, "k": 2}}}},
    "data set": lambda name: {"dataset": {"name": name}},
    "cards": lambda name: {"features": {"cards": {"variants": [name]}}},
    "captured role": lambda name: {"activations": {"roles": [name]}},
    "injection method": lambda name: {"injection": {"concept": 4, "lookalike": 5, "methods": [name]}},
    "language model": lambda name: {"language": {"models": {name: {"embedded": {}, "hook_points": ["a"]}}}},
    "module path": lambda name: {"language": {"models": {"m": {"embedded": {}, "hook_points": [name]}}}},
    "module": lambda name: {"language": {"models": {"m": {"embedded": {}, "hook_points": [{"module": name}]}}}},
    "injection role": lambda name: {"injection": {"concept": 4, "lookalike": 5, "target": name}},
}


@pytest.mark.parametrize("name", OUTSIDE, ids=ascii)
@pytest.mark.parametrize("place", NAMED)
def test_a_name_that_would_leave_its_folder_is_refused(place, name):
    with pytest.raises(ConfigError):
        parse({"study": "s"} | NAMED[place](name))


@given(st.text(alphabet="aZ0_-./\\~ \0\n\u202e\u2024", max_size=80))
def test_whatever_is_a_name_is_a_child_of_its_folder(tmp_path_factory, text):
    for kind in (Name, Architecture, HookPoint):
        try:
            name = TypeAdapter(kind).validate_python(text)
        except ValidationError:
            continue
        assert os.path.normpath(f"results/{name}") == f"results/{name}"
        assert Path("results", name).parent == Path("results")
        assert len(name.encode()) <= 64


def test_every_text_of_a_study_is_one_of_a_list_or_has_a_pattern():
    free = []

    def walk(node, path):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            if isinstance(value, dict | list):
                walk(value, f"{path}/{key}")
        if isinstance(node, dict) and node.get("type") == "string" and not {"enum", "const", "pattern"} & node.keys():
            free.append(path)

    walk(Study.model_json_schema(), "")
    assert free == []


def in_language(folder: str) -> dict:
    return {"language": {"models": {"m": {"folder": folder, "hook_points": ["a"]}}}}


@pytest.mark.parametrize("name", ["../x", "/x", "a/b/c", "a/../b", ".", "..", "a/.b", "~", "a b", "a\0b", "http://x/y"])
def test_a_name_on_the_hub_stays_one(name):
    for model in ({"id": name, "revision": "main"}, {"id": "a/b", "revision": name}):
        if model["revision"] == "main" or name not in ("a/b/c", "a/../b", "a/.b"):
            with pytest.raises(ConfigError):
                parse({"study": "s", "language": {"models": {"m": model | {"hook_points": ["a"]}}}})


@pytest.mark.parametrize("revision", ["a/../b", "refs/pr/1", "v1.0"])
def test_a_revision_is_one_name_in_the_folder_of_downloads(revision):
    assert "/" not in snapshot_name("a/b", revision)


@pytest.mark.parametrize("value", ["x\0y", "{wildcard}", "<results>", "a\nb", "x" * 5000], ids=ascii)
def test_a_path_that_snakemake_would_take_for_a_pattern_is_refused(value):
    folders = ({"reference": value}, {"dataset": {"name": "mnist", "data_dir": value}}, in_language(value))
    for section in folders:
        with pytest.raises(ConfigError):
            parse({"study": "s"} | section)


@pytest.mark.parametrize(
    "field", ["{word:>2000000000}", "{word.__class__}", "{word!r}", "{0}", "{other}", "{word", "}"]
)
def test_a_prompt_takes_words_and_nothing_that_python_would_make_of_them(field):
    with pytest.raises(ConfigError, match=r"may hold \{concept\}, \{word\}"):
        parse({"study": "s", "geometry": {"concepts": {"templates": [f"A {{word}} {field}"]}}})


def test_a_seed_too_large_for_a_generator_is_refused():
    with pytest.raises(ConfigError, match=r"seed: .* a whole number from 0 to 9,223,372,036,854,775,807"):
        parse({"study": "s", "seed": 2**63})


SECRETS = {
    "SAEFLOW_CATALOG_URL": "postgresql://ada:corre%2Fct-horse@db.example/lab",
    "HF_TOKEN": "hf_batterystaple0123",
    "WANDB_API_KEY": "0123456789abcdef0123",
    "AWS_SECRET_ACCESS_KEY": "secretsecretsecret",
    "PGPASSWORD": "hunter2hunter2",
    "HTTPS_PROXY": "http://ada:proxy-pass@proxy.example:3128",
}
SHOWN = ["corre%2Fct-horse", "corre/ct-horse", "proxy-pass", *(SECRETS[n] for n in list(SECRETS)[1:5])]


@pytest.fixture
def secrets(monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("secrets")
def test_secrets_are_written_by_the_name_of_their_variable():
    for name, value in SECRETS.items():
        assert redact(f"could not use {value}!") == f"could not use ${name}!"
    assert redact("password corre/ct-horse for ada") == "password $SAEFLOW_CATALOG_URL for ada"
    assert not any(secret in redact(repr(dict(os.environ))) for secret in SHOWN)


def test_a_password_that_no_variable_holds_is_hidden_too():
    assert redact("mysql://bob:pa:ss@host/x failed") == "mysql://bob:***@host/x failed"
    assert redact("http://host:8080/path and git@host:x") == "http://host:8080/path and git@host:x"


SECRET = st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=8, max_size=24).filter(
    lambda text: not text.isspace() and len(set(text)) > 4 and text not in "$SAEFLOW_CATALOG_URL"
)
PLACES = [
    "postgresql://ada:{quoted}@db.example:5432/lab",
    "postgresql+psycopg://:{quoted}@/lab?host=a:1&host=b:2",
    "postgresql://db.example/lab?user=ada&password={quoted}",
    "postgresql:///lab?sslmode=require&sslpassword={plus}&host=/run",
    "postgresql://db/lab?options=-c%20lab.password%3D{quoted}",
    "postgresql://a:1/lab?passfile=/x&oauth_client_secret={plus}",
    "mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BPWD%3D{quoted}",
    "mysql://bob:{quoted}@h/x?ssl_key_password={quoted}",
    "host=db user=ada password='{escaped}' dbname=lab",
    "https://host/v1?api_key={plus}&page=2",
]


def placed(place: str, secret: str) -> str:
    escaped = secret.replace("\\", "\\\\").replace("'", "\\'")
    return place.format(quoted=quote(secret, safe=""), plus=quote_plus(secret), escaped=escaped)


@pytest.mark.parametrize("place", PLACES)
@settings(deadline=None, max_examples=40)
@example(secret="0000123'")
@given(secret=SECRET)
def test_a_password_is_shown_in_no_spelling(place, secret):
    assume(secret not in place)
    url = placed(place, secret)
    spellings = {secret, quote(secret, safe=""), quote_plus(secret), repr(secret)[1:-1], json.dumps(secret)[1:-1]}
    shown = [redact(f"cannot open {url}"), redact(f"cannot open {url!r} for {{'a': 1}}")]
    shown += [redact(f'missing "=" after {spelling}', url) for spelling in spellings]
    with pytest.MonkeyPatch.context() as patch:
        if "\0" not in url:
            patch.setenv("SAEFLOW_CATALOG_URL", url)
            shown += [redact(f"could not use {spelling} for ada") for spelling in (*spellings, url)]
    assert not [text for text in shown if secret in text or quote(secret, safe="") in text]


@pytest.mark.parametrize("place", PLACES)
@settings(deadline=None, max_examples=20)
@given(secret=SECRET)
def test_a_catalog_is_named_without_its_password(place, secret):
    try:
        shown = database.name_of(database.connect(placed(place, secret)))
    except database.CatalogError as error:
        shown = str(error)
    assert not [spelling for spelling in (secret, quote(secret, safe=""), quote_plus(secret)) if spelling in shown]


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ada:batterystaple/lab",
        "postgresql://ada:battery@staple@db/lab",
        "postgresql://ada@h1:1,h2:2/lab?password=batterystaple",
        "postgresql://ada:battery staple@127.0.0.1:1/lab",
        "postgresql://127.0.0.1:1/lab?passwrd=batterystaple",
        "postgresql://127.0.0.1:1/lab?password=batterystaple",
        "nodatabase://ada:batterystaple@db/lab",
        "host=127.0.0.1 password=batterystaple",
        "  PassWord = 'battery staple'",
    ],
)
def test_the_command_shows_no_password_of_a_catalog(url, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    for arguments in (["--catalog", url], []):
        monkeypatch.setenv("SAEFLOW_CATALOG_URL", url)
        assert command_line.main(["runs", "list", *arguments]) == 1
        said = "".join(capsys.readouterr())
        assert said.startswith("saeflow: ")
        assert "battery" not in said
        assert "staple" not in said
    assert list(tmp_path.iterdir()) == []


def test_the_key_of_an_endpoint_is_a_secret_whatever_its_name(monkeypatch):
    monkeypatch.setenv("LAB_MODELS", "batterystaple")
    monkeypatch.setenv("SAEFLOW_ENDPOINTS", "https://models.example=LAB_MODELS")
    assert redact("sent batterystaple") == "sent $LAB_MODELS"


def test_words_of_other_texts_are_left_alone(monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false-as-a-long-word")
    monkeypatch.setenv("MY_TOKEN", "train")
    assert redact("train with false-as-a-long-word") == "train with false-as-a-long-word"


@pytest.mark.usefixtures("secrets")
def test_a_job_writes_no_secret_into_its_log_nor_onto_the_terminal(tmp_path, capfd):
    def main():
        logging.getLogger("somebody").warning("connecting to %s", os.environ["SAEFLOW_CATALOG_URL"])
        try:
            raise ConnectionError(f"refused for {os.environ['HF_TOKEN']}")
        except ConnectionError as error:
            raise RuntimeError(f"cannot open {os.environ['SAEFLOW_CATALOG_URL']}") from error

    job = SimpleNamespace(
        input={}, output={"t": "out/t"}, params={}, log=[str(tmp_path / "log")], threads=1, rule="some_rule"
    )
    with pytest.raises(SystemExit) as error:
        rule.run(main, job)
    log = (tmp_path / "log").read_text()
    assert "connecting to $SAEFLOW_CATALOG_URL" in log
    assert "ConnectionError: refused for $HF_TOKEN" in log
    assert "cannot open $SAEFLOW_CATALOG_URL" in str(error.value)
    written = [log, str(error.value), *capfd.readouterr()]
    assert not any(secret in text for secret in SHOWN for text in written)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"hf_token": "hf_batterystaple0123"}, "hf_token"),
        ({"catalog": {"password": "hf_batterystaple0123"}}, "catalog.password"),
        ({"catalog": {"api_key": ["hf_batterystaple0123"]}}, "catalog.api_key"),
        ({"reference": "https://ada:hf_batterystaple0123@host/x"}, "reference"),
        ({"dataset": {"name": "mnist", "data_dir": "s3://ada:hf_batterystaple0123@host/x"}}, "dataset.data_dir"),
        ({"notes": ["postgresql://ada:hf_batterystaple0123@host/x"]}, "notes.0"),
    ],
)
def test_a_study_with_a_secret_is_refused_without_showing_it(changes, key):
    with pytest.raises(ConfigError) as error:
        parse({"study": "s"} | changes)
    assert str(error.value).startswith(f"{key}: a ")
    assert "environment variable" in str(error.value)
    assert "batterystaple" not in str(error.value)
