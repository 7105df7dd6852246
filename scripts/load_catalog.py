"""Load every SAE of the study, its features and scores, and the injection results into the study's catalog.

The catalog is a SQLite file of its own; where SAEFLOW_CATALOG_URL names a database, the runs are loaded into that one
as well. It says when it was loaded, so that it is no part of the manifest.
"""

import logging
from pathlib import Path

from saeflow.catalog import database, loading, runs
from saeflow.rule import run

log = logging.getLogger(__name__)


def main(*, tables: list[Path], catalog: Path) -> None:
    """
    Arguments:
        tables: features.parquet of each SAE, and measures.parquet of `gather_injection`; the files beside them and the
            SAEs are found from their paths.
        catalog: .sqlite to write, in the study's folder.
    """
    catalog.unlink(missing_ok=True)
    places = [catalog, *filter(None, [database.of_environment()])]
    engines = [database.open_catalog(place) for place in places]
    for table in tables:
        found = runs.read(catalog.parent, table)
        for engine in engines:
            loading.load(engine, found)
        log.info("%s: %d features, %d measures", found.name, len(found.features), len(found.injections))
    log.info("loaded %d runs into %s", len(tables), " and ".join(map(database.name_of, engines)))


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
