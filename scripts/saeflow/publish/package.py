"""One SAE of a language model as a package for SAELens, sparsify, dictionary_learning and Neuronpedia, with a manifest.

package.json            what it is, which formats it has or why not, sha256 of every file
README.md               the model card
saelens/                cfg.json, sae_weights.safetensors
sparsify/layers.<n>/    cfg.json, sae.safetensors                        (TopK and ReLU)
dictionary_learning/    config.json, ae.pt
neuronpedia/            upload/batch-*.json, export/<model>/<source>/
older/                  the names of the project's first scripts
"""

from pathlib import Path
from typing import Any

import jinja2

from saeflow import __version__
from saeflow.publish import feature_rows, neuronpedia_files, sae_exports
from saeflow.publish.identity import Identity
from saeflow.reproduce import manifest, write_json
from saeflow.sae import formats

MANIFEST, CARD = "package.json", "README.md"
FORMAT = 1
_TEMPLATE = Path(__file__).with_suffix(".md.j2")
_METRICS = ("l0", "explained_variance", "dead_share", "ce_recovered_zero", "ce_recovered_mean", "n_tokens")


def write(folder: Path, sae_folder: Path, features: Path, identity: Identity, n_layers: int | None = None) -> None:
    """Write a package into a folder that is not there or is empty; equal content is equal bytes.

    Arguments:
        sae_folder: directory of the SAE.
        features: folder of its feature analysis.
    Raises:
        FileExistsError: the folder holds files.
        ValueError: no living feature, or a number that is none.
    """
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder}: holds files already; a package is written into a folder of its own")
    sae = formats.load(sae_folder)
    about = feature_rows.summary(features)
    layer = identity.np_layer
    sae_exports.write_saelens(sae_folder, folder / "saelens")
    exports: dict[str, str | None] = {"saelens": None, "neuronpedia": None, "older": None}
    for name, write_one in {
        "sparsify": lambda: sae_exports.write_sparsify(sae, folder / "sparsify" / f"layers.{layer}"),
        "dictionary_learning": lambda: sae_exports.write_dictionary_learning(
            sae, folder / "dictionary_learning", model=identity.model, module=identity.hook_point, layer=layer
        ),
    }.items():
        try:
            write_one()
            exports[name] = None
        except sae_exports.NotRepresentableError as error:
            exports[name] = str(error)
    n_published = neuronpedia_files.write(folder / "neuronpedia", features, identity, n_layers)
    analysed = [_analysis(row) for row in feature_rows.read(features)]
    content = {
        "format": FORMAT,
        "saeflow_version": __version__,
        **{
            name: getattr(identity, name)
            for name in ("study", "model", "model_revision", "hook_point", "variant", "seed")
        },
        "architecture": sae.architecture,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "n_published": n_published,
        "metrics": {name: about[name] for name in _METRICS if about.get(name) is not None},
        "neuronpedia": {
            "model": identity.np_model,
            "set": identity.np_set,
            "source": identity.np_source,
            "release": identity.release.name,
            "created_at": identity.release.created_at,
        },
        "formats": exports,
    }
    sae_exports.write_older(sae, folder / "older", _older_metadata(content), analysed)
    (folder / CARD).write_text(_card(content, identity), encoding="utf-8")
    write_json(folder / MANIFEST, content | {"files": manifest(folder, [folder])})


def _analysis(row: feature_rows.FeatureRow) -> dict[str, Any]:
    feature = row.feature
    numbers = ("density", "mean_activation", "max_activation", "decoder_norm")
    return {
        "feature": feature["feature"],
        "dead": feature["dead"],
        **{name: float(f"{feature[name]:.6g}") for name in numbers},
        "top_tokens": feature["top_tokens"],
        "bottom_tokens": feature["bottom_tokens"],
        "n_contexts": len(row.contexts),
    }


def _older_metadata(content: dict[str, Any]) -> dict[str, Any]:
    names = ("model", "hook_point", "variant", "architecture", "d_in", "d_sae", "metrics", "n_published")
    return {name: content[name] for name in names} | {"source": content["neuronpedia"]["source"]}


def _card(content: dict[str, Any], identity: Identity) -> str:
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        package=content, release=identity.release
    )
