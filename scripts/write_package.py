"""Package the SAEs of one hook point for Neuronpedia, SAELens, sparsify and dictionary_learning, and verify each.

A package that fails a check is an error: its name, and what is wrong, are in the log.
"""

import logging
from pathlib import Path

from saeflow.config.publish import Publish
from saeflow.publish import feature_rows, package
from saeflow.publish.identity import Identity, Release
from saeflow.publish.verification import verify
from saeflow.reproduce import write_json
from saeflow.rule import run

log = logging.getLogger(__name__)


def main(*, saes: list[Path], features: list[Path], packages: list[Path], verdicts: list[Path], cfg: dict) -> None:
    """
    Arguments:
        saes: cfg.json of each SAE.
        features: features.parquet of each.
        packages: folders to write.
        verdicts: .json to write, what every check found.
        cfg: `study` (its name), `publish` (section), `model` (name).
    """
    spec = Publish.model_validate(cfg["publish"])
    release = Release(spec.release_of(cfg["study"]), spec.title, spec.creator, spec.url, spec.date)
    for sae, table, folder, verdict in zip(saes, features, packages, verdicts, strict=True):
        about = feature_rows.summary(table.parent)
        named = {key: about[key] for key in ("study", "model", "hook_point", "variant", "model_revision", "seed")}
        identity = Identity(**named, release=release, model_id=spec.model_ids.get(about["model"]))
        package.write(folder, sae.parent, table.parent, identity)
        results = verify(folder)
        failed = [f"{result.name}: {result.problem}" for result in results if result.outcome == "failed"]
        if failed:
            raise ValueError(f"{folder} fails {len(failed)} checks: {'; '.join(failed)}")
        write_json(verdict, {result.name: result.outcome for result in results})
        log.info("%s: %d checks passed", folder, sum(result.outcome == "passed" for result in results))


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
