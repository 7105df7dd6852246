"""The catalog on a real PostgreSQL server, started on loopback for these tests."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import zlib
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from catalog_rows import BULK, bulk_run, rows_of
from language_features import write_study
from sqlalchemy import create_engine, event, func, select, text

from saeflow.catalog import database, loading, runs
from saeflow.catalog.schema import Base, DiscoveredFeature, TrainingRun


def binaries() -> Path | None:
    """Folder with initdb and pg_ctl: on the path, or where Debian keeps them, the newest."""
    if found := shutil.which("initdb"):
        return Path(found).parent
    packaged = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    return max((path.parent for path in packaged), key=lambda path: int(path.parts[-2]), default=None)


CUT = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
)


class Server:
    """A server of its own on a free port of loopback; it refuses root, so that root starts it as user postgres."""

    def __init__(self, folder: Path, binaries: Path) -> None:
        self.folder, self.binaries = folder, binaries
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._as = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
        if self._as:
            user = pwd.getpwnam("postgres")
            os.chown(folder, user.pw_uid, user.pw_gid)
        self._run("initdb", "-D", folder / "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "-N")
        self.start()

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder} -c fsync=off"
        self._run("pg_ctl", "-s", "-w", "-D", self.folder / "data", "-l", self.folder / "log", "-o", options, "start")

    def stop(self, mode: str = "fast") -> None:
        self._run("pg_ctl", "-s", "-w", "-D", self.folder / "data", "-m", mode, "stop")

    def url(self, name: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{name}"

    def create(self, name: str) -> str:
        """URL of a new empty database."""
        engine = create_engine(database.connect(self.url("postgres")).url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8'"))
        engine.dispose()
        return self.url(name)

    def _run(self, program: str, *arguments: object) -> None:
        command = [*self._as, self.binaries / program, *arguments]
        # Output into a file: the server would keep a pipe open.
        with open(self.folder / "commands", "a") as output:
            done = subprocess.run(list(map(str, command)), cwd="/", stdout=output, stderr=subprocess.STDOUT)
        assert done.returncode == 0, (self.folder / "commands").read_text()[-2000:]


@pytest.fixture(scope="module")
def server():
    found = binaries()
    if found is None:
        pytest.skip("PostgreSQL is not installed: no initdb on the path or in /usr/lib/postgresql")
    if os.getuid() == 0 and not shutil.which("runuser"):
        pytest.skip("PostgreSQL refuses to run as root, and there is no runuser")
    folder = Path(tempfile.mkdtemp(prefix="saeflow-pg-"))  # short and open to the server's user, unlike tmp_path
    running = Server(folder, found)
    yield running
    running.stop("immediate")
    shutil.rmtree(folder)


@pytest.fixture
def url(server, request):
    return server.create(f"t{zlib.crc32(request.node.name.encode())}")


@pytest.fixture
def run(tmp_path):
    study = write_study(tmp_path / "results")
    return runs.read(study, *runs.tables_of(study))


def test_migrations_make_the_tables_that_the_models_describe(url):
    engine = database.open_catalog(url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_processes_that_open_a_new_catalog_at_once_make_its_tables_once(url):
    failed = []

    def open_one():
        try:
            database.open_catalog(url).dispose()
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=open_one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_it_holds_the_same_rows_as_sqlite(url, run, tmp_path):
    engines = [database.open_catalog(place) for place in (url, tmp_path / "catalog.sqlite")]
    for engine in engines:
        loading.load(engine, run)
        loading.load(engine, run)
    ours, embedded = map(rows_of, engines)
    assert ours == embedded
    with engines[0].connect() as connection:
        loaded = connection.execute(select(TrainingRun.loaded_at)).scalar_one()
    assert loaded.utcoffset().total_seconds() == 0


def test_20480_features_go_in_within_five_seconds(url, run):
    engine = database.open_catalog(url)
    many, seconds = bulk_run(run), []
    for _ in range(3):  # the fastest: what else the machine does is left out
        start = time.perf_counter()
        loading.load(engine, many)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 5
    with engine.connect() as connection:
        assert connection.execute(select(func.count()).select_from(DiscoveredFeature)).scalar_one() == BULK


def cut_connections_at(engine, other, statement_part):
    """Let the server end every other connection as soon as a statement has run."""

    @event.listens_for(engine, "after_cursor_execute")
    def cut(connection, cursor, statement, *_):
        if statement_part in statement:
            with other.connect() as admin:
                admin.execute(text(CUT))

    return cut


@pytest.mark.parametrize(
    "after", ["DELETE FROM training_runs", "INSERT INTO training_runs", "INSERT INTO discovered_features"]
)
def test_a_lost_connection_leaves_the_old_run_whole(url, run, after):
    engine = database.open_catalog(url)
    loading.load(engine, run)
    before = rows_of(engine)
    changed = runs.Run(run.training_run | {"digest": "0" * 64}, run.sae, run.features)
    other = database.connect(url)
    cut = cut_connections_at(engine, other, after)
    with pytest.raises(database.CatalogError, match=r"connection was lost.*run the same command again"):
        loading.load(engine, changed)
    event.remove(engine, "after_cursor_execute", cut)
    assert rows_of(engine) == before
    loading.load(engine, changed)
    assert rows_of(engine)["training_runs"] != before["training_runs"]


class Interrupted(list):
    """Rows on whose way something happens when half of them are read."""

    def __init__(self, rows, happens):
        super().__init__(rows)
        self.happens = happens

    def __iter__(self):
        for i, row in enumerate(super().__iter__()):
            if i == len(self) // 2:
                self.happens()
            yield row


def test_a_connection_lost_within_the_bulk_of_features_leaves_the_old_run_whole(url, run):
    engine, other = database.open_catalog(url), database.connect(url)
    loading.load(engine, run)
    before = rows_of(engine)

    def cut():
        with other.connect() as admin:
            admin.execute(text(CUT))

    features = Interrupted(bulk_run(run).features, cut)
    with pytest.raises(database.CatalogError, match=r"connection was lost.*run the same command again"):
        loading.load(engine, runs.Run(run.training_run, run.sae, features))
    assert rows_of(engine) == before


def test_a_server_that_stops_in_between_leaves_no_half_run(server, url, run):
    engine = database.open_catalog(url)

    @event.listens_for(engine, "after_cursor_execute")
    def stop(connection, cursor, statement, *_):
        if "INSERT INTO discovered_features" in statement:
            server.stop("immediate")

    with pytest.raises(database.CatalogError, match="undone as a whole"):
        loading.load(engine, run)
    event.remove(engine, "after_cursor_execute", stop)
    with pytest.raises(database.CatalogError, match="is the database there"):
        database.open_catalog(url)
    server.start()
    assert not any(rows_of(engine).values())


def test_two_jobs_that_load_the_same_run_at_once_leave_it_once(url, run):
    database.open_catalog(url).dispose()
    failed = []

    def load():
        try:
            loading.load(database.open_catalog(url), run)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(rows_of(database.connect(url))["discovered_features"]) == len(run.features)
