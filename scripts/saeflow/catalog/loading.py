"""Put runs into the catalog: each whole, in one transaction, in place of what it held under the same name."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, Connection, Engine, delete, insert, text
from sqlalchemy.exc import DBAPIError

from saeflow.catalog.database import explained
from saeflow.catalog.runs import Run
from saeflow.catalog.schema import (
    Base,
    ConceptScore,
    DiscoveredFeature,
    EpochMetric,
    InjectionResult,
    SAEModel,
    TrainingRun,
)

_ROWS = 2048  # per statement: what the driver is given at a time


def load(engine: Engine, run: Run) -> int:
    """Insert a run, in place of the one of that name; after any failure the catalog is as it was before.

    Arguments:
        engine: of `saeflow.catalog.database.open_catalog`.
    Returns:
        `training_runs.id`.
    Raises:
        CatalogError: connection lost, disk full, or a row that the tables refuse.
    """
    with explained(engine), engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            # Two jobs that load the same run wait for one another.
            connection.execute(text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))"), {"name": run.name})
        connection.execute(delete(TrainingRun).where(TrainingRun.name == run.name))
        new = insert(TrainingRun).values(**run.training_run, loaded_at=datetime.now(UTC))
        (run_id,) = connection.execute(new).inserted_primary_key
        for table, rows in (
            (SAEModel, [run.sae] if run.sae else []),
            (DiscoveredFeature, run.features),
            (EpochMetric, run.curve),
            (ConceptScore, run.concepts),
            (InjectionResult, run.injections),
        ):
            _insert(connection, table, run_id, rows)
    return run_id


def _insert(connection: Connection, table: type[Base], run_id: int, rows: Sequence[dict[str, Any]]) -> None:
    if connection.dialect.name == "postgresql" and len(rows) > _ROWS:
        _copy(connection, table, run_id, rows)
        return
    for start in range(0, len(rows), _ROWS):
        connection.execute(insert(table), [{"run_id": run_id, **row} for row in rows[start : start + _ROWS]])


def _copy(connection: Connection, table: type[Base], run_id: int, rows: Sequence[dict[str, Any]]) -> None:
    """PostgreSQL's own door for many rows, which costs half of as many INSERTs; part of the same transaction."""
    columns = table.__table__.columns
    in_json = {column.name for column in columns if isinstance(column.type, JSON)}
    names = columns.keys()
    statement = f"COPY {table.__tablename__} ({', '.join(names)}) FROM STDIN"
    driver, used = connection.dialect.loaded_dbapi, connection.connection
    try:
        with used.cursor().copy(statement) as copy:
            for row in rows:
                values = {"run_id": run_id, **row}
                copy.write_row([json.dumps(values[n]) if n in in_json else values[n] for n in names])
    except driver.Error as error:
        raise DBAPIError.instance(
            statement, None, error, driver.Error, connection_invalidated=used.dbapi_connection.broken
        ) from error
