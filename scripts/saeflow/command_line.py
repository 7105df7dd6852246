"""The command `saeflow`: what studies found, from their catalogs, and packages ready to be published.

    saeflow runs list
    saeflow runs compare A B
    saeflow features list [RUN]
    saeflow features top RUN
    saeflow features analyze RUN
    saeflow features details RUN FEATURE
    saeflow features search TEXT
    saeflow load STUDY_FOLDER
    saeflow verify PACKAGE
    saeflow upload PACKAGE
    saeflow serve

RUN is a run's name or any part of it that is in no other's. Catalogs are looked for in results/*/catalog.sqlite, or
where --catalog or SAEFLOW_CATALOG_URL says.
"""

import argparse
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from saeflow import __version__
from saeflow.terminal import escaped, printable

Arguments = argparse.Namespace
_WIDTH = 160  # of what is piped into a file or another program


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 for an error or a package that fails, 2 for a wrong call."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal of another encoding shows a question mark
            stream.reconfigure(errors="replace")
    arguments = _parser().parse_args(argv)
    from saeflow.catalog.database import CatalogError
    from saeflow.catalog.queries import UnknownError
    from saeflow.catalog.runs import RunError
    from saeflow.publish.upload import UploadError
    from saeflow.redaction import redact

    try:
        return arguments.command(arguments) or 0
    except (CatalogError, RunError, UnknownError, UploadError, FileNotFoundError, ValueError) as error:
        said = printable(redact(str(error), getattr(arguments, "catalog", None) or ""), lines=True)
        _console(stderr=True).print(f"saeflow: {said}", style="red", markup=False)
        return 1
    except BrokenPipeError:  # `saeflow ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _console(*, stderr: bool = False) -> Console:
    """A console for messages, whose lines are as long as they are."""
    return Console(stderr=stderr, soft_wrap=True, highlight=False)


def _show(arguments: Arguments, found: Any, table: Callable[[], Any]) -> None:
    """Print an answer: as JSON if asked for, else as a table."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH
    if arguments.json:
        text = json.dumps(found, indent=2, allow_nan=False, default=_in_json, ensure_ascii=False)
        console.out(escaped(text, console.encoding), highlight=False)
    else:
        console.print(table(), markup=False)


def _in_json(value: Any) -> str:
    if isinstance(value, datetime | Path):
        return value.isoformat() if isinstance(value, datetime) else str(value)
    raise TypeError(f"{type(value).__name__} is no JSON value")


def _catalogs(arguments: Arguments) -> Any:
    from saeflow.catalog.places import Catalogs

    return Catalogs(arguments.catalog, arguments.results)


def list_runs(arguments: Arguments) -> None:
    """All runs with their SAE and how good it is."""
    from saeflow.catalog import presentation, queries

    found = sorted((row for connection in _catalogs(arguments) for row in queries.runs(connection)), key=_name)
    _show(arguments, found, lambda: presentation.table(found, presentation.RUNS))


def compare_runs(arguments: Arguments) -> None:
    """Two runs side by side: settings and metrics, with their difference."""
    from saeflow.catalog import presentation, queries

    catalogs, sides = _catalogs(arguments), []
    for asked in (arguments.a, arguments.b):
        with catalogs.of(asked) as (name, connection):
            sides.append(queries.run_of(connection, name))
    rows = queries.difference(*sides)
    a, b = (side["name"] for side in sides)
    found = {"a": a, "b": b, "rows": rows}
    shown = rows if arguments.all else [row for row in rows if not row["equal"]]
    columns = {"key": "", "a": a, "b": b, "difference": "b - a"}
    title = f"{len(rows) - len(shown)} equal rows left out" if len(shown) < len(rows) else None
    _show(arguments, found, lambda: presentation.table(shown, columns, title))


def list_features(arguments: Arguments) -> None:
    """Features of a run in their order; without RUN, how many each run has."""
    from saeflow.catalog import presentation, queries

    catalogs = _catalogs(arguments)
    if arguments.run is None:
        found = sorted((row for connection in catalogs for row in queries.feature_counts(connection)), key=_name)
        _show(arguments, found, lambda: presentation.table(found, presentation.COUNTS))
        return
    with catalogs.of(arguments.run) as (name, connection):
        found = queries.features(connection, name, limit=arguments.limit, offset=arguments.offset)
    _show(arguments, found, lambda: presentation.table(found, presentation.FEATURES, name))


def top_features(arguments: Arguments) -> None:
    """The most interpretable features of a run; those that fire nearly always are left out unless --dense."""
    from saeflow.catalog import presentation, queries

    with _catalogs(arguments).of(arguments.run) as (name, connection):
        found = queries.top(connection, name, limit=arguments.limit, dense=arguments.dense)
    _show(arguments, found, lambda: presentation.table(found, presentation.FEATURES, name))


def analyze_features(arguments: Arguments) -> None:
    """What a run's features are like together, its concepts, and its SAE's metrics."""
    from saeflow.catalog import presentation, queries

    with _catalogs(arguments).of(arguments.run) as (name, connection):
        found = queries.analyze(connection, name)
    _show(arguments, found, lambda: presentation.analysis(found))


def feature_details(arguments: Arguments) -> None:
    """One feature: numbers, tokens that it promotes, neighbours, concepts, and its top contexts."""
    from saeflow.catalog import presentation, queries

    catalogs = _catalogs(arguments)
    with catalogs.of(arguments.run) as (name, connection):
        found = queries.feature(connection, name, arguments.feature)
        contexts = catalogs.contexts(connection, name, arguments.feature, arguments.limit)
    whole = {"run": name, **found, "contexts": contexts}
    _show(arguments, whole, lambda: presentation.details(name, found, contexts))


def search_features(arguments: Arguments) -> None:
    """Features of all runs whose label, tokens or contexts hold every word of TEXT."""
    from saeflow.catalog import presentation, queries

    catalogs, words = _catalogs(arguments), queries.words_of(" ".join(arguments.text))
    if arguments.run is not None:
        with catalogs.of(arguments.run) as (name, connection):
            found = queries.search(connection, words, limit=arguments.limit, run=name)
    else:
        every = [row for connection in catalogs for row in queries.search(connection, words, limit=arguments.limit)]
        found = sorted(every, key=queries.relevance)[: arguments.limit]
    _show(arguments, found, lambda: presentation.table(found, presentation.FEATURES))


def load_study(arguments: Arguments) -> None:
    """Load a built study into a catalog: its own, or the one that --catalog or the environment names."""
    from saeflow.catalog import database, loading, runs

    study = arguments.study.absolute()
    tables = runs.tables_of(study)
    engine = database.open_catalog(arguments.catalog or database.of_environment() or study / database.FILE)
    names = []
    for table in tables:
        run = runs.read(study, table)
        loading.load(engine, run)
        names.append(run.name)
    found = {"catalog": database.name_of(engine), "runs": names}
    _show(arguments, found, lambda: f"{len(names)} runs of {study.name} are in {database.name_of(engine)}")


def verify_package(arguments: Arguments) -> int:
    """Run every check on a package and list what each found; status 1 if one fails."""
    from dataclasses import asdict

    from saeflow.catalog import presentation
    from saeflow.publish.verification import verify

    results = [asdict(result) for result in verify(arguments.package)]
    counts = {outcome: sum(r["outcome"] == outcome for r in results) for outcome in ("passed", "failed", "skipped")}
    title = ", ".join(f"{n} {outcome}" for outcome, n in counts.items())
    found = {"package": str(arguments.package), **counts, "checks": results}
    _show(arguments, found, lambda: presentation.checks(results, title))
    return int(counts["failed"] > 0)


def upload_package(arguments: Arguments) -> int:
    """Send the features of a verified package to Neuronpedia; without --yes, only say what would be sent."""
    from saeflow.publish import upload
    from saeflow.publish.verification import verify

    failed = [result.name for result in verify(arguments.package) if result.outcome == "failed"]
    if failed:
        raise ValueError(f"{arguments.package} is not sent: {', '.join(failed)} failed; see `saeflow verify`")
    batches = sorted((arguments.package / "neuronpedia" / "upload").glob("batch-*.json"))
    console = _console()
    if not arguments.yes:
        size = sum(batch.stat().st_size for batch in batches) / 1e6
        console.print(f"{len(batches)} batches, {size:.1f} MB, to {arguments.server}; --yes sends them", markup=False)
        return 0
    for batch, said in upload.send(batches, server=arguments.server, first=arguments.first):
        console.print(f"{batch.name}: {printable(said)}", markup=False)
    return 0


def serve_results(arguments: Arguments) -> int:
    """Serve the studies' sites, and their catalogs as JSON, to this machine alone; openapi.json says how to ask."""
    console = _console(stderr=True)
    try:
        from saeflow.publish import server
    except ImportError as error:
        what = "pip install --no-deps --require-hashes -r envs/serve.lock"
        raise ValueError(f"serve needs the package '{error.name}', which is not installed: {what}") from None
    if not server.is_loopback(arguments.host):
        console.print(
            f"saeflow: whoever reaches {arguments.host} can read all of {arguments.results}",
            style="yellow",
            markup=False,
        )
    server.serve(arguments.results, arguments.catalog, arguments.host, arguments.port)
    return 0


def _name(row: dict[str, Any]) -> str:
    return row["name"]


def _parser() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--json", action="store_true", help="print JSON")
    place = argparse.ArgumentParser(add_help=False)
    place.add_argument("--catalog", metavar="FILE_OR_URL", help="this catalog only")
    place.add_argument("--results", type=Path, default=Path("results"), help="folder of the studies' results")
    many = argparse.ArgumentParser(add_help=False)
    many.add_argument("--limit", "-n", type=_from(1), default=10, help="rows at most (default 10)")

    parser = argparse.ArgumentParser(
        "saeflow", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=__version__)
    groups = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(to: Any, name: str, command: Callable[[Arguments], int | None], *parents: Any) -> argparse.ArgumentParser:
        text = (command.__doc__ or "").strip().partition("\n")[0]
        made = to.add_parser(name, help=text, description=text, parents=[shared, *parents])
        made.set_defaults(command=command)
        return made

    runs = groups.add_parser("runs", help="runs and their SAEs").add_subparsers(required=True, metavar="COMMAND")
    add(runs, "list", list_runs, place)
    compare = add(runs, "compare", compare_runs, place)
    compare.add_argument("a", metavar="A")
    compare.add_argument("b", metavar="B")
    compare.add_argument("--all", action="store_true", help="equal rows too")

    features = groups.add_parser("features", help="features of SAEs").add_subparsers(required=True, metavar="COMMAND")
    listed = add(features, "list", list_features, place, many)
    listed.add_argument("run", metavar="RUN", nargs="?")
    listed.add_argument("--offset", type=_from(0), default=0, help="features to skip")
    top = add(features, "top", top_features, place, many)
    top.add_argument("run", metavar="RUN")
    top.add_argument("--dense", action="store_true", help="also features that fire on more than a tenth")
    add(features, "analyze", analyze_features, place).add_argument("run", metavar="RUN")
    details = add(features, "details", feature_details, place, many)
    details.add_argument("run", metavar="RUN")
    details.add_argument("feature", metavar="FEATURE", type=_from(0))
    search = add(features, "search", search_features, place, many)
    search.add_argument("text", metavar="TEXT", nargs="+")
    search.add_argument("--run", metavar="RUN", help="in this run only")

    add(groups, "load", load_study, place).add_argument("study", metavar="STUDY_FOLDER", type=Path)
    add(groups, "verify", verify_package).add_argument("package", metavar="PACKAGE", type=Path)
    send = add(groups, "upload", upload_package)
    send.add_argument("package", metavar="PACKAGE", type=Path)
    send.add_argument("--yes", action="store_true", help="send; the key is read from NEURONPEDIA_API_KEY")
    send.add_argument("--server", default="https://www.neuronpedia.org", help="scheme and host")
    send.add_argument("--first", type=_from(0), default=0, help="batch to begin with, to go on after an error")
    serving = add(groups, "serve", serve_results, place)
    serving.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine alone)")
    serving.add_argument("--port", type=_from(1, 65535), default=8000, help="port (default 8000)")
    return parser


def _from(lowest: int, highest: int = 2**31 - 1) -> Callable[[str], int]:
    """Reads a whole number within bounds, both included."""

    def read(text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) < 20 and lowest <= int(text) <= highest):
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is no whole number from {lowest} to {highest}")
        return int(text)

    return read
