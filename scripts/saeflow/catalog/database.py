"""Where the catalog is, and that its tables are those of this version."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError

from saeflow.redaction import redact

VARIABLE = "SAEFLOW_CATALOG_URL"
"""Environment variable with the URL of a database that takes the place of the studies' own files."""
FILE = "catalog.sqlite"
MIGRATIONS = Path(__file__).parent / "migrations"
_LOOKS = f"{VARIABLE} looks like postgresql://user@host:5432/name, --catalog like that or is a file"
# As `host=... password=...`: PostgreSQL's own tools take it in place of a URL.
_CONNECTION_STRING = re.compile(
    r"\s*(host|hostaddr|port|dbname|user|password|passfile|service|ssl\w+|options)\s*=", re.I
)
_PLACES = ("host", "hostaddr", "port", "dbname", "user", "service")
_LOCK = 0x5AEF10  # of PostgreSQL's advisory locks, for migrations


class CatalogError(Exception):
    """A catalog that cannot be read or written; the message says which, why, and what to do."""


def url_of(place: Path | str) -> URL:
    """Database URL of a URL or of a SQLite file.

    Raises:
        CatalogError: neither of them; the message shows no part of it, which may be a password.
    """
    if "://" not in str(place):
        if _CONNECTION_STRING.match(str(place)):
            raise CatalogError(f"a connection string is no catalog; {_LOOKS}")
        if re.search(":.*@", str(place)) and not Path(place).exists():
            raise CatalogError(f"a login without :// behind its scheme is no catalog; {_LOOKS}")
        return URL.create("sqlite", database=Path(place).absolute().as_posix())
    scheme = str(place).partition("://")[0]
    try:
        url = make_url(str(place))
    except (ArgumentError, ValueError):
        raise CatalogError(
            f"the catalog {scheme}://… is no URL of a database: a port is a number, several hosts are written "
            f"?host=a:5432&host=b:5432; {_LOOKS}"
        ) from None
    if "@" in (url.host or ""):
        raise CatalogError(f"the catalog {scheme}://… has several @: one that is part of a password is written %40")
    return url


def connect(place: Path | str) -> Engine:
    """Engine of a catalog: a file, or any URL that SQLAlchemy knows. Connects to nothing yet.

    Raises:
        CatalogError: not a URL of a database, or no driver for it.
    """
    url = url_of(place)
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")  # the driver that is installed
    try:
        arguments = {"connect_timeout": 10} if url.drivername.startswith("postgresql") else {}
        engine = create_engine(url, pool_pre_ping=url.get_backend_name() != "sqlite", connect_args=arguments)
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError, ValueError, TypeError) as error:
        raise CatalogError(
            f"{_shown(url)} is no database that can be reached from here ({redact(str(error), _whole(url))}); {_LOOKS}"
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
    """The catalog as a person knows it: its file, or its URL without what may be secret."""
    if engine.dialect.name == "sqlite":
        return engine.url.database or "in memory"
    return _shown(engine.url)


def _shown(url: URL) -> str:
    """A URL with what tells one database from another; any other option may be a password, or hold one."""
    query = {name: value for name, value in url.query.items() if name in _PLACES}
    return redact(
        URL.create(url.drivername, url.username, None, url.host, url.port, url.database, query).render_as_string(),
        _whole(url),
    )


def _whole(url: URL) -> str:
    return url.render_as_string(hide_password=False)


@contextmanager
def explained(engine: Engine) -> Iterator[None]:
    """Turn errors of the driver into errors that say which catalog it was, and that nothing was half done.

    Raises:
        CatalogError: in place of the driver's error.
    """
    try:
        yield
    except DBAPIError as error:
        said = redact(str(error.orig).strip(), _whole(engine.url))
        reason = (said or type(error.orig).__name__).splitlines()[0]
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
