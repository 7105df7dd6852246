"""`saeflow serve` as its users run it: a process that answers over HTTP what the command line prints."""

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import extra_packages
import jsonschema
import pytest
from language_features import write_study

from saeflow import command_line

ROOT = Path(__file__).parents[2]
RUN = "tales/tiny/model.layers.1/topk_3x"


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("results")
    assert command_line.main(["load", str(write_study(root))]) == 0
    (root / "tales" / "site").mkdir()
    (root / "tales" / "site" / "index.html").write_text("<title>tales</title>")
    return root


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    return extra_packages.environment(
        extra_packages.install("serve", tmp_path_factory.mktemp("extra")), without="SAEFLOW_CATALOG_URL"
    )


Ask = Callable[..., tuple[int, str]]


@contextmanager
def serving(results: Path, environment: dict[str, str], host: str, url_host: str) -> Iterator[Ask]:
    """A server, asked for the status and the body of a path."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "saeflow", "serve", "--results", results, "--host", host, "--port", port]
    process = subprocess.Popen([*map(str, command)], env=environment, stderr=subprocess.PIPE, text=True)

    def get(path: str, host: str = f"{url_host}:{port}") -> tuple[int, str]:
        asked = urllib.request.Request(f"http://{url_host}:{port}{path}", headers={"Host": host})
        try:
            with urllib.request.urlopen(asked, timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    try:
        for _ in range(300):
            assert process.poll() is None, process.stderr.read()
            try:
                get("/")
            except urllib.error.URLError:
                time.sleep(0.1)
            else:
                break
        yield get
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def ask(results, environment) -> Iterator[Ask]:
    with serving(results, environment, "127.0.0.1", "127.0.0.1") as get:
        yield get


def test_answers_are_those_of_the_command_line(ask, results, capsys):
    def printed(*words: str) -> object:
        assert command_line.main([*words, "--json", "--results", str(results)]) == 0
        return json.loads(capsys.readouterr().out)

    assert json.loads(ask("/api/runs")[1]) == printed("runs", "list")
    assert json.loads(ask("/api/features?run=topk_3x&limit=5&offset=3")[1]) == printed(
        "features", "list", "topk_3x", "-n", "5", "--offset", "3"
    )
    assert json.loads(ask("/api/top?run=topk_3x&limit=3")[1]) == printed("features", "top", "topk_3x", "-n", "3")
    best = printed("features", "top", "topk_3x", "-n", "1")[0]["feature"]
    assert json.loads(ask(f"/api/feature?run=topk_3x&feature={best}")[1]) == printed(
        "features", "details", "topk_3x", str(best)
    )
    word = printed("features", "details", "topk_3x", str(best))["label"].split("'")[1].strip()
    assert json.loads(ask(f"/api/search?text={word}")[1]) == printed("features", "search", word)
    assert json.loads(ask("/api/run?run=topk_3x")[1])["name"] == RUN


def test_sites_are_listed_and_open(ask):
    assert 'href="results/tales/site/index.html"' in ask("/")[1]
    assert ask("/results/tales/site/index.html") == (200, "<title>tales</title>")


@pytest.mark.parametrize(
    ("host", "url_host"),
    [("::1", "[::1]"), ("0:0::1", "[::1]"), ("127.0.0.3", "127.0.0.3"), ("localhost", "localhost")],
)
def test_every_loopback_address_answers(results, environment, host, url_host):
    with serving(results, environment, host, url_host) as get:
        assert get("/api/runs")[0] == 200
        assert get("/api/runs", host="elsewhere.example")[0] == 400


def test_the_interface_is_documented_and_answers_as_it_says(ask):
    document = json.loads(ask("/openapi.json")[1])
    paths = document["paths"]
    assert set(paths) == {f"/api/{name}" for name in ("runs", "run", "features", "top", "feature", "search")}
    asked = {"run": "?run=topk_3x", "features": "?run=topk_3x", "top": "?run=topk_3x", "search": "?text=dog"}
    asked |= {"runs": "", "feature": "?run=topk_3x&feature=0"}
    for name, question in asked.items():
        told = paths[f"/api/{name}"]["get"]
        assert told["description"]
        assert {"200", "503"} <= set(told["responses"])
        schema = told["responses"]["200"]["content"]["application/json"]["schema"]
        status, body = ask(f"/api/{name}{question}")
        assert status == 200
        answer = json.loads(body)
        assert answer
        jsonschema.validate(answer, schema | {"components": document["components"]})
        named = schema.get("items", schema)["$ref"].rpartition("/")[2]
        keys = set(document["components"]["schemas"][named]["properties"])
        assert keys == set(answer[0] if isinstance(answer, list) else answer)


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/api/top?run=nothing", 404, "no run is called 'nothing'; nearest"),
        ("/api/feature?run=topk_3x&feature=99999", 404, "99999"),
        ("/api/top?run=topk_3x&limit=0", 422, "greater than or equal to 1"),
        (f"/api/features?run=topk_3x&offset={2**63}", 422, "less than or equal to 9223372036854775807"),
        (f"/api/features?run=topk_3x&offset={2**63 - 1}", 200, "[]"),
        (f"/api/feature?run=topk_3x&feature={2**63 - 1}", 404, "it has features 0 to 47"),
        (f"/api/feature?run=topk_3x&feature={2**80}", 422, "less than or equal to"),
        (f"/api/feature?run=topk_3x&feature=0&contexts={2**80}", 422, "less than or equal to"),
        ("/api/search?text=%20%09", 422, "the text is empty; give a word"),
        ("/api/search?text=%00", 422, "character of number 0"),
        (f"/api/search?text={'a+' * 400}", 422, "400 words, 800 characters; give 32 words"),
        (f"/api/search?text={'word+' * 12_000}", 422, "at most 1000 characters"),
        (f"/api/run?run={'x' * 50_000}", 422, "at most 512 characters"),
        ("/api/run?run=%00", 404, "no run is called"),
        ("/results/%00", 404, "Not Found"),
        ("/results/../../etc/passwd", 404, "Not Found"),
        ("/results/%2e%2e/%2e%2e/etc/passwd", 404, "Not Found"),
    ],
)
def test_what_is_not_there_is_told(ask, path, status, said):
    found, text = ask(path)
    assert found == status
    assert said in text


def test_a_page_of_another_site_cannot_ask_by_another_name(ask):
    assert ask("/api/runs", host="elsewhere.example")[0] == 400
