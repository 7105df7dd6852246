"""Where the catalog is, and that its tables are those of this version."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError

from saeflow.redaction import redact

VARIABLE = "SAEFLOW_CATALOG_URL"
"""Environment variable with the URL of a database that takes the place of the studies' own files."""
FILE = "catalog.sqlite"
MIGRATIONS = Path(__file__).parent / "migrations"
_LOCK = 0x5AEF10  # of PostgreSQL's advisory locks, for migrations


class CatalogError(Exception):
    """A catalog that cannot be read or written; the message says which, why, and what to do."""


def url_of(place: Path | str) -> str:
    """Database URL of a URL or of a SQLite file."""
    return str(place) if "://" in str(place) else f"sqlite:///{Path(place).absolute().as_posix()}"


def connect(place: Path | str) -> Engine:
    """Engine of a catalog: a file, or any URL that SQLAlchemy knows. Connects to nothing yet.

    Raises:
        CatalogError: not a URL of a database, or no driver for it.
    """
    url = url_of(place)
    try:
        parsed = make_url(url)
        if parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")  # the driver that is installed
        arguments = {"connect_timeout": 10} if parsed.drivername.startswith("postgresql") else {}
        engine = create_engine(parsed, pool_pre_ping=parsed.get_backend_name() != "sqlite", connect_args=arguments)
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
        raise CatalogError(
            f"{redact(url)} is no database that can be reached from here ({error}); {VARIABLE} looks like "
            "postgresql://user@host:5432/name"
        ) from None
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare)
        event.listen(engine, "begin", _begin)
    return engine


def open_catalog(place: Path | str) -> Engine:
    """Engine of a catalog whose tables are those of this version: made or migrated if need be.

    Raises:
        CatalogError: not reachable, not writable, or written by a newer version.
    """
    engine = connect(place)
    with explained(engine):
        try:
            migrate(engine)
        except CommandError as error:
            raise CatalogError(
                f"{name_of(engine)}: its tables are of a version that this saeflow does not know ({error}); "
                "use the saeflow that wrote it, or a newer one"
            ) from None
    return engine


def migrate(engine: Engine, revision: str = "head") -> None:
    """Bring the tables to a revision, in one transaction; processes that come at the same time wait for one another.

    A catalog that is there already is only read.
    """
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    with engine.connect() as connection:
        found = MigrationContext.configure(connection).get_current_revision()
    wanted = ScriptDirectory.from_config(config).get_current_head() if revision == "head" else revision
    if found == wanted:
        return
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def name_of(engine: Engine) -> str:
    """The catalog as a person knows it: its file, or its URL without the password."""
    if engine.dialect.name == "sqlite":
        return engine.url.database or "in memory"
    return engine.url.render_as_string(hide_password=True)


@contextmanager
def explained(engine: Engine) -> Iterator[None]:
    """Turn errors of the driver into errors that say which catalog it was, and that nothing was half done.

    Raises:
        CatalogError: in place of the driver's error.
    """
    try:
        yield
    except DBAPIError as error:
        reason = redact((str(error.orig).strip() or type(error.orig).__name__).splitlines()[0])
        if error.connection_invalidated:
            advice = "the connection was lost; the transaction was undone as a whole: run the same command again"
        elif isinstance(error, OperationalError):
            advice = f"is the database there, and may this user write to it? {VARIABLE} or --catalog names another one"
        else:
            advice = "the transaction was undone as a whole"
        raise CatalogError(f"{name_of(engine)}: {reason}; {advice}") from error


def of_environment() -> str | None:
    """URL that the environment names."""
    return os.environ.get(VARIABLE) or None


def _prepare(connection: Any, _record: Any) -> None:
    """Python's driver would commit before it changes tables: it is told to begin nothing by itself."""
    connection.isolation_level = None
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA busy_timeout = 30000")


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN")
