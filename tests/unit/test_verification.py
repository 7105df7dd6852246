"""Every check of a package is shown failing: a good package is broken in one way, and that check alone fails."""

import gzip
import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from language_features import write_study
from safetensors.torch import load_file, save_file

from saeflow.publish import package, sae_exports
from saeflow.publish.identity import Identity, Release
from saeflow.publish.neuronpedia_rows import content_id
from saeflow.publish.verification import CHECKS, verify
from saeflow.reproduce import manifest, write_json
from saeflow.sae import formats

RELEASE = Release("tales", "Tales of SAEs", "A. Uthor")
ARCHITECTURES = ("topk", "jumprelu")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A package of each architecture."""
    root = tmp_path_factory.mktemp("packages")
    for architecture in ARCHITECTURES:
        write_package(root / architecture, root / "results", architecture)
    return root


def write_package(folder, results, architecture="topk", **changes):
    study = write_study(results, f"tales_{architecture}_{folder.name}", architecture=architecture)
    place = Path("tiny") / "model.layers.1" / f"{architecture}_3x"
    identity = Identity(study.name, "tiny", "model.layers.1", f"{architecture}_3x", RELEASE)
    for name, value in changes.items():
        object.__setattr__(identity, name, value)
    package.write(folder, study / "language/saes" / f"{place}-s0", study / "language/features" / place, identity)
    return folder


# What a break needs: files, changed and put back under new digests.


def edit_json(path, change):
    content = json.loads(path.read_text())
    result = change(content)
    path.write_text(json.dumps(content if result is None else result))


def edit_upload(folder, change):
    edit_json(folder / "neuronpedia/upload/batch-0000.json", change)


def first(folder):
    return json.loads((folder / "neuronpedia/upload/batch-0000.json").read_text())["features"][0]


def edit_feature(folder, change):
    edit_upload(folder, lambda body: change(body["features"][0]))


def edit_activation(folder, change):
    edit_feature(folder, lambda feature: change(feature["activations"][0]))


def source(folder):
    return next((folder / "neuronpedia/export").glob("*/*"))


def edit_rows(folder, kind, change, mtime=0, ids=True):
    """Change the list of rows of the export; ids of activations are made anew unless said otherwise."""
    path = source(folder) / kind / "batch-0.jsonl.gz"
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    result = change(rows)
    rows = rows if result is None else result
    if kind == "activations" and ids:
        ranks = {}
        for row in rows:
            ranks[row["index"]] = ranks.get(row["index"], -1) + 1
            row["id"] = content_id(row, ranks[row["index"]])
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode(), mtime=mtime))


def edit_manifest(folder, **changes):
    edit_json(folder / "package.json", lambda content: content.update(changes))


def edit_said(folder, **changes):
    """What both the manifest and the older metadata say."""
    edit_manifest(folder, **changes)
    edit_json(folder / "older/neuronpedia_metadata.json", lambda content: content.update(changes))


def published(folder, change):
    edit_said(folder, n_published=json.loads((folder / "package.json").read_text())["n_published"] + change)


def replace_sae(folder, change):
    """Another SAE, in all formats."""
    metadata = json.loads((folder / "saelens/cfg.json").read_text())["metadata"]
    sae = change(formats.load(folder / "saelens"))
    formats.save(sae, folder / "saelens", metadata)
    said = {"model": "tiny", "module": "model.layers.1", "layer": 1}
    sae_exports.write_dictionary_learning(sae, folder / "dictionary_learning", **said)
    if (folder / "sparsify").is_dir():
        sae_exports.write_sparsify(sae, folder / "sparsify/layers.1")
    np.save(folder / "older/decoder_weights.npy", sae.W_dec.numpy())
    save_file({name: getattr(sae, name).clone() for name in sae.shapes}, folder / "older/sae_model.safetensors")


def edit_tensors(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def zero_row(sae):
    decoder = sae.W_dec.clone()
    decoder[3] = 0
    return sae.replace(W_dec=decoder)


def add_file(folder, name, content):
    (folder / name).write_text(content)


def drop_feature(folder):
    index = str(first(folder)["index"])
    edit_upload(folder, lambda body: body["features"].pop(0) and None)
    edit_rows(folder, "features", lambda rows: [row for row in rows if row["index"] != index])
    edit_rows(folder, "activations", lambda rows: [row for row in rows if row["index"] != index])
    published(folder, -1)


def drop_activations(folder):
    index = str(first(folder)["index"])
    edit_feature(folder, lambda feature: feature.update(activations=[]))
    edit_rows(folder, "activations", lambda rows: [row for row in rows if row["index"] != index])


def empty_batch(folder):
    body = json.loads((folder / "neuronpedia/upload/batch-0000.json").read_text()) | {"features": []}
    write_json(folder / "neuronpedia/upload/batch-0001.json", body)
    for kind in ("features", "activations"):
        (source(folder) / kind / "batch-1.jsonl.gz").write_bytes(gzip.compress(b"", mtime=0))


def hostile_pickle(folder):
    torch.save({"threshold": Path("x")}, folder / "dictionary_learning/ae.pt")


def unnumbered_source(folder):
    """The whole package under a source whose layer is no number."""
    shutil.rmtree(folder)
    write_package(folder, folder.parent / "again", extra={})
    names = json.loads((folder / "package.json").read_text())["neuronpedia"]
    old, new = names["source"], f"one-{names['set']}"
    source(folder).rename(source(folder).with_name(new))
    edit_manifest(folder, neuronpedia=names | {"source": new})
    edit_upload(folder, lambda body: body.update(source=new))
    for name in ("release", "model", "source"):
        path = source(folder) / f"{name}.jsonl"
        path.write_text(path.read_text().replace(old, new))
    for kind in ("features", "activations"):
        edit_rows(folder, kind, lambda rows: [row.update(layer=new) for row in rows] and None)


BREAKS = {
    # files
    "manifest_is_readable": lambda f: edit_json(f / "package.json", lambda c: c.pop("formats") and None),
    "manifest_format_is_known": lambda f: edit_manifest(f, format=99),
    "listed_files_are_there": lambda f: edit_json(
        f / "package.json", lambda c: c["files"].update({"gone.txt": "0" * 64})
    ),
    "files_are_listed": lambda f: add_file(f, "extra.txt", "?"),
    "digests_are_right": lambda f: add_file(f, "README.md", (f / "README.md").read_text() + "\n"),
    "there_are_no_links": lambda f: (f / "link.md").symlink_to("README.md"),
    "there_are_no_foreign_pickles": lambda f: add_file(f, "more.pkl", "?"),
    "the_pickle_is_of_plain_tensors": hostile_pickle,
    "no_paths_of_a_machine": lambda f: edit_json(
        f / "older/neuronpedia_metadata.json", lambda c: c.update(path="/home/me/sae")
    ),
    "no_secrets": lambda f: edit_json(f / "older/neuronpedia_metadata.json", lambda c: c.update(key="hf_" + "a1" * 16)),
    "card_names_the_sae": lambda f: add_file(f, "README.md", "# An SAE of tiny"),
    # weights
    "saelens_config_is_readable": lambda f: add_file(f / "saelens", "cfg.json", "{"),
    "saelens_version_is_stated": lambda f: edit_json(
        f / "saelens/cfg.json", lambda c: c["metadata"].update(sae_lens_version="5.9.1")
    ),
    "saelens_loads": lambda f: edit_tensors(f / "saelens/sae_weights.safetensors", lambda t: t.pop("b_dec")),
    "weights_are_finite": lambda f: edit_tensors(
        f / "saelens/sae_weights.safetensors", lambda t: t["W_enc"].__setitem__((0, 0), torch.nan)
    ),
    "weights_have_the_stated_dtype": lambda f: edit_json(f / "saelens/cfg.json", lambda c: c.update(dtype="float16")),
    "decoder_rows_are_not_zero": lambda f: replace_sae(f, zero_row),
    "thresholds_are_not_negative": lambda f: replace_sae(f, lambda s: s.replace(threshold=s.threshold - 9)),
    "sizes_agree": lambda f: edit_said(f, d_in=17),
    "architecture_agrees": lambda f: edit_said(f, architecture="standard"),
    "hook_point_agrees": lambda f: edit_json(
        f / "saelens/cfg.json", lambda c: c["metadata"].update(hook_name="model.layers.2")
    ),
    "sparsify_config_says_the_same": lambda f: edit_json(f / "sparsify/layers.1/cfg.json", lambda c: c.update(k=3)),
    "sparsify_reconstructs_the_same": lambda f: edit_tensors(
        f / "sparsify/layers.1/sae.safetensors", lambda t: t["b_dec"].add_(1e-3)
    ),
    "dictionary_config_says_the_same": lambda f: edit_json(
        f / "dictionary_learning/config.json", lambda c: c["trainer"].update(dict_size=7)
    ),
    "dictionary_reconstructs_the_same": lambda f: torch.save(
        {
            name: tensor * 1.001 if name == "b_dec" else tensor
            for name, tensor in torch.load(f / "dictionary_learning/ae.pt").items()
        },
        f / "dictionary_learning/ae.pt",
    ),
    "older_decoder_is_the_decoder": lambda f: np.save(
        f / "older/decoder_weights.npy", np.load(f / "older/decoder_weights.npy")[::-1]
    ),
    "older_weights_are_the_weights": lambda f: edit_tensors(
        f / "older/sae_model.safetensors", lambda t: t["b_enc"].add_(1)
    ),
    "older_metadata_agrees": lambda f: edit_json(
        f / "older/neuronpedia_metadata.json", lambda c: c.update(variant="relu")
    ),
    "older_features_are_all_latents": lambda f: edit_json(
        f / "older/feature_analysis.json", lambda c: c["features"].reverse()
    ),
    # upload
    "upload_batches_are_readable": lambda f: add_file(f / "neuronpedia/upload", "batch-0000.json", "{"),
    "upload_batches_are_numbered": lambda f: (f / "neuronpedia/upload/batch-0000.json").rename(
        f / "neuronpedia/upload/batch-0001.json"
    ),
    "upload_batches_have_few_features": empty_batch,
    "upload_names_agree": lambda f: edit_upload(f, lambda body: body.update(modelId="Tiny")),
    "upload_indices_are_of_latents": lambda f: edit_feature(f, lambda x: x.update(index=str(x["index"]))),
    "upload_indices_are_unique": lambda f: (
        edit_upload(f, lambda body: body["features"].append(body["features"][0])),
        published(f, 1),
    ),
    "upload_densities_are_shares": lambda f: edit_feature(f, lambda x: x.update(density=None)),
    "upload_features_have_activations": drop_activations,
    "upload_features_are_alive": lambda f: edit_feature(
        f, lambda x: [a.update(values=[0] * len(a["values"])) for a in x["activations"]] and None
    ),
    "upload_activations_are_not_too_long": lambda f: edit_activation(
        f, lambda a: a.update(tokens=["a"] * 1025, values=[1.0] * 1025)
    ),
    "upload_tokens_are_not_empty": lambda f: edit_activation(f, lambda a: a["tokens"].__setitem__(2, "")),
    "upload_values_go_with_tokens": lambda f: edit_activation(f, lambda a: a["values"].append(1.0)),
    "upload_values_are_numbers": lambda f: edit_activation(f, lambda a: a["values"].__setitem__(0, float("nan"))),
    "upload_quantiles_are_in_bounds": lambda f: edit_activation(f, lambda a: a.update(quantileFraction=2)),
    "upload_logits_are_well_formed": lambda f: edit_feature(f, lambda x: x.update(topLogits=x["topLogits"] * 3)),
    "upload_is_complete": drop_feature,
    "upload_densities_are_the_analysis": lambda f: edit_feature(f, lambda x: x.update(density=x["density"] / 2)),
    "number_of_features_agrees": lambda f: published(f, 1),
    # export
    "export_files_are_there": lambda f: (source(f) / "model.jsonl").unlink(),
    "export_rows_are_readable": lambda f: (source(f) / "activations/batch-0.jsonl.gz").write_bytes(
        (source(f) / "activations/batch-0.jsonl.gz").read_bytes()[:-40]
    ),
    "export_names_agree": lambda f: edit_json(source(f) / "source.jsonl", lambda row: row.update(setName="other")),
    "source_is_layer_and_set": unnumbered_source,
    "export_features_have_their_columns": lambda f: edit_rows(
        f, "features", lambda rows: rows[0].pop("pos_str") and None
    ),
    "export_activations_have_their_columns": lambda f: edit_rows(
        f, "activations", lambda rows: rows[0].pop("dataSource") and None
    ),
    "export_rows_are_of_the_source": lambda f: edit_rows(f, "features", lambda rows: rows[0].update(layer="2-res")),
    "export_is_the_upload": lambda f: edit_rows(f, "features", lambda rows: rows.pop() and None),
    "export_has_all_activations": lambda f: edit_rows(f, "activations", lambda rows: rows.pop() and None),
    "export_peaks_are_right": lambda f: edit_rows(
        f, "activations", lambda rows: rows[0].update(maxValue=rows[0]["maxValue"] + 1)
    ),
    "export_ids_are_digests": lambda f: edit_rows(
        f, "activations", lambda rows: rows[0].update(id="c" + "0" * 24), ids=False
    ),
    "export_dates_are_fixed": lambda f: edit_rows(
        f, "features", lambda rows: rows[3].update(createdAt="2026-05-05T11:22:33.000Z")
    ),
    "export_is_packed_alike": lambda f: edit_rows(f, "features", lambda rows: None, mtime=1),
}
OF_ARCHITECTURE = {"thresholds_are_not_negative": "jumprelu"}
KEEPS_DIGESTS = {"listed_files_are_there", "files_are_listed", "digests_are_right", "manifest_is_readable"}


def test_every_check_is_broken_once():
    assert [check.name for check in CHECKS] == list(BREAKS)
    assert len(CHECKS) >= 32
    assert len({check.says for check in CHECKS}) == len(CHECKS)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_good_package_passes(good, architecture):
    results = verify(good / architecture)
    skipped = {result.name for result in results if result.outcome == "skipped"}
    assert [result for result in results if result.outcome == "failed"] == []
    assert skipped == (set() if architecture == "topk" else {name for name in BREAKS if name.startswith("sparsify")})


@pytest.mark.parametrize("name", BREAKS)
def test_a_package_that_is_broken_in_one_way_fails_that_check_alone(good, tmp_path, name):
    folder = tmp_path / "package"
    shutil.copytree(good / OF_ARCHITECTURE.get(name, "topk"), folder)
    BREAKS[name](folder)
    if name not in KEEPS_DIGESTS:
        (folder / "sealed").write_text((folder / "package.json").read_text())
        content = json.loads((folder / "sealed").read_text())
        (folder / "sealed").unlink()
        files = manifest(folder, [folder])
        files.pop("package.json")
        write_json(folder / "package.json", content | {"files": files})
    failed = {result.name: result.problem for result in verify(folder) if result.outcome == "failed"}
    assert set(failed) == {name}, failed
    assert failed[name]


def test_equal_packages_are_equal_bytes(good, tmp_path):
    first = write_package(tmp_path / "topk", tmp_path / "results")
    assert manifest(first, [first]) == manifest(good / "topk", [good / "topk"])


def test_a_folder_that_is_not_there_is_no_package(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such package"):
        verify(tmp_path / "nothing")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert {result.name for result in verify(empty) if result.outcome == "failed"} >= {"manifest_is_readable"}


def test_gzip_heads_are_read_as_the_format_has_them(good):
    (path,) = (source(good / "topk") / "features").glob("*")
    magic, flags, time = struct.unpack("<H x B I", path.read_bytes()[:8])
    assert (magic, flags & 0x08, time) == (0x8B1F, 0, 0)
