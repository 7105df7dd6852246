"""Which catalogs a command reads: the one it is given, the one of the environment, or those of the studies here."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from sqlalchemy import Connection, Engine

from saeflow.catalog import database, queries
from saeflow.catalog.runs import CONTEXTS


class Catalogs:
    """One or several catalogs, asked as if they were one.

    Arguments:
        given: file or URL; without it `SAEFLOW_CATALOG_URL`, else every `<results>/<study>/catalog.sqlite`.
        results: folder of the studies' results.

    Raises:
        CatalogError: there is none, or one cannot be opened.
    """

    def __init__(self, given: str | None, results: Path) -> None:
        self.results = results
        place = given or database.of_environment()
        if place is not None:
            file = None if "://" in place else database.url_of(place).database
            if file and not Path(file).is_file():
                raise database.CatalogError(
                    f"{place}: no such catalog; `snakemake catalog` builds results/<study>/{database.FILE}"
                )
            places: Sequence[Path | str] = [place]
        else:
            places = sorted(results.glob(f"*/{database.FILE}"))
        if not places:
            raise database.CatalogError(
                f"no catalog here: {results}/*/{database.FILE} is not there and {database.VARIABLE} is not set; "
                "`snakemake catalog` builds one"
            )
        self.engines = [database.open_catalog(place) for place in places]

    def __iter__(self) -> Iterator[Connection]:
        """A connection to each."""
        for engine in self.engines:
            with _reading(engine) as connection:
                yield connection

    @contextmanager
    def of(self, asked: str) -> Iterator[tuple[str, Connection]]:
        """Name of the run that is meant, and a connection to the catalog that holds it.

        Raises:
            UnknownError: as `queries.resolve`.
        """
        where: dict[str, Engine] = {}
        for engine in self.engines:
            with _reading(engine) as connection:
                where |= dict.fromkeys(queries.names(connection), engine)
        name = queries.resolve(asked, sorted(where))
        with _reading(where[name]) as connection:
            yield name, connection

    def contexts(self, connection: Connection, run: str, feature: int, limit: int) -> list[dict[str, Any]]:
        """Top contexts of a feature with the activation of every token; none where the study's files are not here."""
        about = queries.run_of(connection, run)
        file = connection.engine.url.database if connection.dialect.name == "sqlite" else None
        study = Path(file).parent if file and Path(file).name == database.FILE else self.results / about["study"]
        path = study / (about["sae"] or {}).get("features_path", ".") / CONTEXTS
        if not path.is_file():
            return []
        return pq.read_table(path, filters=[("feature", "==", feature)]).slice(0, limit).to_pylist()


@contextmanager
def _reading(engine: Engine) -> Iterator[Connection]:
    with database.explained(engine), engine.connect() as connection:
        yield connection
