"""A small read-only server: the sites of the studies, and what their catalogs hold as JSON.

`/openapi.json` documents the interface; every answer is what the command `saeflow … --json` prints.
"""

import ipaddress
from pathlib import Path
from typing import Annotated

from fastapi import FastAPI, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from markupsafe import Markup
from starlette.middleware.trustedhost import TrustedHostMiddleware

from saeflow import __version__
from saeflow.catalog import answers, queries
from saeflow.catalog.database import CatalogError
from saeflow.catalog.places import Catalogs

Limit = Annotated[int, Query(ge=1, le=1000, description="Rows at most.")]
Run = Annotated[
    str,
    Query(max_length=queries.LONGEST_NAME, description="A run's name, or any part of it that is in no other's."),
]
Number = Annotated[int, Query(ge=0, le=2**63 - 1)]
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
UNKNOWN = {404: {"model": answers.Problem, "description": "No such run or feature; says which are near."}}


def application(results: Path, catalog: str | None = None, hosts: tuple[str, ...] = LOOPBACK) -> FastAPI:
    """The server as an ASGI application.

    Arguments:
        results: folder of the studies' results; all of it can be read.
        catalog: file or URL of the one catalog to ask; those of the studies if not given.
        hosts: names that a request may call this machine by: pages of other sites must not reach it.
    Raises:
        CatalogError: no catalog.
    """
    catalogs = Catalogs(catalog, results)
    unreached = {503: {"model": answers.Problem, "description": "A catalog that cannot be read."}}
    about = {"title": "saeflow", "version": __version__, "description": __doc__, "responses": unreached}
    app = FastAPI(docs_url=None, redoc_url=None, **about)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))

    @app.exception_handler(queries.UnknownError)
    def unknown(_: Request, error: queries.UnknownError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 404)

    @app.exception_handler(queries.QuestionError)
    def impossible(_: Request, error: queries.QuestionError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 422)

    @app.exception_handler(CatalogError)
    def unreachable(_: Request, error: CatalogError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 503)

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def sites() -> str:
        found = sorted(path.parent.parent.name for path in results.glob("*/site/index.html"))
        items = [Markup('<li><a href="results/{0}/site/index.html">{0}</a></li>').format(name) for name in found]
        head = '<!doctype html><html lang="en"><meta charset="utf-8"><title>saeflow</title><h1>Studies</h1>'
        return f'{head}<ul>{Markup("").join(items)}</ul><p><a href="openapi.json">openapi.json</a></p>'

    @app.get("/api/runs")
    def runs() -> list[answers.Run]:
        """All runs with their SAE and its summary."""
        every = [row for connection in catalogs for row in queries.runs(connection)]
        return [answers.Run(**row) for row in sorted(every, key=lambda row: row["name"])]

    @app.get("/api/run", responses=UNKNOWN)
    def run(run: Run) -> answers.WholeRun:
        """Everything about a run but its features."""
        with catalogs.of(run) as (name, connection):
            return answers.WholeRun(**queries.run_of(connection, name))

    @app.get("/api/features", responses=UNKNOWN)
    def features(run: Run, limit: Limit = 100, offset: Number = 0) -> list[answers.FeatureRow]:
        """Features of a run in their order."""
        with catalogs.of(run) as (name, connection):
            return [answers.FeatureRow(**row) for row in queries.features(connection, name, limit=limit, offset=offset)]

    @app.get("/api/top", responses=UNKNOWN)
    def top(run: Run, limit: Limit = 10, dense: bool = False) -> list[answers.FeatureRow]:
        """The most interpretable features of a run."""
        with catalogs.of(run) as (name, connection):
            return [answers.FeatureRow(**row) for row in queries.top(connection, name, limit=limit, dense=dense)]

    @app.get("/api/feature", responses=UNKNOWN)
    def feature(run: Run, feature: Number, contexts: Limit = 10) -> answers.WholeFeature:
        """One feature with its evidence, concepts and strongest contexts."""
        with catalogs.of(run) as (name, connection):
            found = queries.feature(connection, name, feature)
            strongest = catalogs.contexts(connection, name, feature, contexts)
            return answers.WholeFeature(run=name, **found, contexts=strongest)

    @app.get("/api/search")
    def search(
        text: Annotated[str, Query(min_length=1, max_length=queries.LONGEST_TEXT)], limit: Limit = 10
    ) -> list[answers.FoundFeature]:
        """Features of all runs whose label, tokens or contexts hold every word."""
        words = queries.words_of(text)
        every = [row for c in catalogs for row in queries.search(c, words, limit=limit)]
        return [answers.FoundFeature(**row) for row in sorted(every, key=queries.relevance)[:limit]]

    app.mount("/results", StaticFiles(directory=results), name="results")
    return app


def serve(results: Path, catalog: str | None, host: str, port: int) -> None:
    """Serve until interrupted."""
    import uvicorn

    # Between brackets stands an address of version 6 in a request.
    hosts = (*LOOPBACK, host, f"[{host}]") if is_loopback(host) else ("*",)
    uvicorn.run(application(results, catalog, hosts), host=host, port=port, log_level="info")


def is_loopback(host: str) -> bool:
    """Whether an address reaches this machine from itself alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
