"""`saeflow serve` as its users run it: a process that answers over HTTP what the command line prints."""

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import extra_packages
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


@pytest.fixture(scope="module")
def ask(results, environment) -> Iterator[Ask]:
    """Status and body of a path."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "saeflow", "serve", "--results", results, "--port", port]
    process = subprocess.Popen([*map(str, command)], env=environment, stderr=subprocess.PIPE, text=True)

    def get(path: str, host: str = f"127.0.0.1:{port}") -> tuple[int, str]:
        asked = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"Host": host})
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


def test_the_interface_is_documented(ask):
    paths = json.loads(ask("/openapi.json")[1])["paths"]
    assert set(paths) == {f"/api/{name}" for name in ("runs", "run", "features", "top", "feature", "search")}
    assert all(path["get"]["description"] for path in paths.values())


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/api/top?run=nothing", 404, "no run is called 'nothing'; nearest"),
        ("/api/feature?run=topk_3x&feature=99999", 404, "99999"),
        ("/api/top?run=topk_3x&limit=0", 422, "greater than or equal to 1"),
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
