"""What is published for Neuronpedia: rows by its schema, and batches sent to a server that checks as it does."""

import gzip
import json
import math
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from language_features import write_study
from neuronpedia_server import Neuronpedia

from saeflow.command_line import main
from saeflow.publish import feature_rows, neuronpedia_files, neuronpedia_rows, package, upload
from saeflow.publish.identity import Identity, Release, slug

RELEASE = Release("tales", "Tales of SAEs", "A. Uthor", url="https://example.org")


def identity(hook="model.layers.1", **changes):
    return Identity("tales", "tiny", hook, "topk_3x", RELEASE, **changes)


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    return write_study(tmp_path_factory.mktemp("results"))


def features_of(study):
    return next(study.rglob("features.parquet")).parent


@pytest.fixture(scope="module")
def published(study, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("packages") / "topk"
    sae = next(study.rglob("cfg.json")).parent
    package.write(folder, sae, features_of(study), identity())
    return folder


def bodies(folder):
    return [json.loads(path.read_text()) for path in sorted((folder / "neuronpedia/upload").glob("*"))]


def unpacked(path):
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


@pytest.mark.parametrize(
    ("hook", "source"),
    [
        ("model.layers.2", "2-tales-res-topk-3x"),
        ("model.layers.16.mlp.fc2", "16-tales-mlp-fc2-topk-3x"),
        ("gpt_neox.layers.3.attention.input", "3-tales-attention-input-topk-3x"),
        ("transformer.h.11", "11-tales-res-topk-3x"),
    ],
)
def test_sources_are_layer_and_set(hook, source):
    assert identity(hook).np_source == source


def test_names_that_neuronpedia_would_take_apart_are_refused_or_made_right():
    assert slug("TopK__8x / Résumé") == "topk-8x-r-sum"
    with pytest.raises(ValueError, match="as 'my-saes'"):
        Release("my_SAEs", "", "")
    with pytest.raises(ValueError, match="expected a day"):
        Release("mine", "", "", date="today")
    with pytest.raises(ValueError, match="'lm_head' has no layer's number"):
        _ = identity("lm_head").np_source
    assert identity("lm_head", layer=7).np_source == "7-tales-res-topk-3x"


def test_the_upload_has_every_living_feature_with_its_contexts(study, published):
    uploaded = {feature["index"]: feature for body in bodies(published) for feature in body["features"]}
    for row in feature_rows.read(features_of(study)):
        index = row.feature["feature"]
        assert (index in uploaded) == (not row.feature["dead"])
        if index in uploaded:
            assert uploaded[index]["density"] == pytest.approx(row.feature["density"], rel=1e-5)
            activations = uploaded[index]["activations"]
            assert [a["tokens"] for a in activations] == [context["tokens"] for context in row.contexts]
            for activation, context in zip(activations, row.contexts, strict=True):
                assert activation["values"] == pytest.approx(context["activations"], rel=1e-5)


def test_the_export_has_the_same_features_and_its_rows_name_one_another(published):
    (source,) = (published / "neuronpedia/export/tiny").iterdir()
    rows = {path.stem: json.loads(path.read_text()) for path in source.glob("*.jsonl")}
    assert rows["release"]["defaultSourceId"] == rows["source"]["id"] == source.name
    assert rows["sourceset"]["releaseName"] == rows["release"]["name"] == "tales"
    assert rows["source"]["num_tokens_in_prompt"] == 12
    features = unpacked(source / "features/batch-0.jsonl.gz")
    uploaded = bodies(published)[0]["features"]
    assert [row["index"] for row in features] == [str(feature["index"]) for feature in uploaded]
    assert [row["pos_str"][0] for row in features] == [feature["topLogits"][0]["token"] for feature in uploaded]
    assert len(features[0]["freq_hist_data_bar_heights"]) == len(features[0]["freq_hist_data_bar_values"])
    activations = unpacked(source / "activations/batch-0.jsonl.gz")
    assert len({row["id"] for row in activations}) == len(activations)
    assert all(len(row["id"]) == 25 and row["id"][0] == "c" for row in activations)


def test_more_than_128_features_make_more_batches(study, tmp_path, monkeypatch):
    monkeypatch.setattr(neuronpedia_rows, "BATCH", 10)
    n = neuronpedia_files.write(tmp_path, features_of(study), identity())
    sizes = [len(json.loads(path.read_text())["features"]) for path in sorted((tmp_path / "upload").glob("*"))]
    assert sum(sizes) == n
    assert set(sizes[:-1]) == {10}
    assert len(list(tmp_path.rglob("activations/*.gz"))) == len(sizes)


def a_row(**changes):
    feature = {"feature": 3, "dead": False, "density": 0.1, "max_activation": 2.0}
    feature |= {f"{side}_{what}": [] for side in ("top", "bottom") for what in ("tokens", "logits")}
    context = {"activation": 2.0, "position": 1, "tokens": ["a", "b"], "activations": [0.0, 2.0], "document": 4}
    return feature_rows.FeatureRow(feature, [context | changes])


def test_tokens_that_the_schema_refuses_are_replaced():
    (activation,) = neuronpedia_rows.uploaded(a_row(tokens=["", "x\x00y"]))["activations"]
    assert activation["tokens"] == ["\N{REPLACEMENT CHARACTER}", "x\N{REPLACEMENT CHARACTER}y"]


@pytest.mark.parametrize("peak", [0, 700, 1999])
def test_a_long_context_is_cut_around_its_peak(peak):
    values = [0.0] * 2000
    values[peak] = 2.0
    row = a_row(tokens=[f"t{i}" for i in range(2000)], activations=values, position=peak)
    (activation,) = neuronpedia_rows.uploaded(row)["activations"]
    assert len(activation["tokens"]) == len(activation["values"]) == 1024
    assert activation["tokens"][activation["values"].index(2.0)] == f"t{peak}"


def test_a_number_that_is_none_is_refused_by_name():
    with pytest.raises(ValueError, match="feature 3: activations is nan"):
        neuronpedia_rows.uploaded(a_row(activations=[0.0, math.nan]))


def test_without_a_feature_that_fires_there_is_nothing_to_publish(tmp_path):
    study = write_study(tmp_path)
    path = next(study.rglob("features.parquet"))
    rows = pq.read_table(path)
    dead = rows.set_column(rows.schema.get_field_index("dead"), "dead", [[True] * len(rows)])
    pq.write_table(dead, path)
    with pytest.raises(ValueError, match="no feature fires"):
        neuronpedia_files.write(tmp_path / "out", path.parent, identity())


def test_a_package_is_not_written_over_files(published, study):
    with pytest.raises(FileExistsError, match="a folder of its own"):
        package.write(published, next(study.rglob("cfg.json")).parent, features_of(study), identity())


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv(upload.KEY, Neuronpedia.key)
    with Neuronpedia.running() as address:
        yield address


def test_nothing_is_sent_unless_asked(published, server, capsys):
    assert main(["upload", str(published), "--server", server]) == 0
    assert "--yes sends them" in capsys.readouterr().out
    assert Neuronpedia.received == ()


def test_a_package_is_sent_as_it_is_on_disk(published, server, capsys):
    assert main(["upload", str(published), "--server", server, "--yes"]) == 0
    assert list(Neuronpedia.received) == bodies(published)
    n = len(bodies(published)[0]["features"])
    assert f"batch-0000.json: {n} features created." in capsys.readouterr().out


def test_a_busy_server_is_asked_again(published, server):
    Neuronpedia.busy, waits = 2, []
    sent = list(upload.send(sorted((published / "neuronpedia/upload").glob("*")), server=server, wait=waits.append))
    assert len(sent) == len(Neuronpedia.received) == 1
    assert waits == [1, 2]


def test_errors_say_which_batch_and_how_to_go_on_and_not_the_key(published, server, tmp_path, monkeypatch):
    batch = tmp_path / "batch-0000.json"
    batch.write_text(json.dumps({"features": [a | {"density": None} for a in bodies(published)[0]["features"]]}))
    with pytest.raises(upload.UploadError, match=r"batch-0000\.json: the server answered 400: .*density.*--first 0"):
        list(upload.send([batch], server=server))
    monkeypatch.setenv(upload.KEY, "another-key-2")
    with pytest.raises(upload.UploadError, match="401") as refused:
        list(upload.send([batch], server=server))
    assert "another-key-2" not in str(refused.value)


def test_without_a_key_or_over_an_open_line_nothing_is_sent(published, server, monkeypatch, capsys):
    with pytest.raises(upload.UploadError, match="https only"):
        next(upload.send([], server="http://example.org"))
    with pytest.raises(upload.UploadError, match="cannot be reached"):
        next(upload.send(list((published / "neuronpedia/upload").glob("*")), server="http://127.0.0.1:1", attempts=1))
    monkeypatch.delenv(upload.KEY)
    assert main(["upload", str(published), "--server", server, "--yes"]) == 1
    assert f"{upload.KEY} is not set" in capsys.readouterr().err
    assert Neuronpedia.received == ()


def test_a_package_that_fails_is_not_sent(published, server, tmp_path, capsys):
    broken = tmp_path / "broken"
    shutil.copytree(published, broken)
    (broken / "extra.txt").write_text("?")
    assert main(["upload", str(broken), "--server", server, "--yes"]) == 1
    assert "files_are_listed failed" in capsys.readouterr().err
    assert Neuronpedia.received == ()


def test_verify_lists_every_check_and_its_status_tells(published, tmp_path, capsys):
    assert main(["verify", str(published), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["failed"] == 0
    assert found["passed"] == len(found["checks"]) >= 32
    assert main(["verify", str(published)]) == 0
    shown = capsys.readouterr().out
    assert all(check["name"] in shown for check in found["checks"])
    assert main(["verify", str(tmp_path)]) == 1
    assert "✗" in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "none")]) == 1
    assert "no such package" in capsys.readouterr().err
