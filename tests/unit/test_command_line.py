"""The command `saeflow`: what it answers about a catalog, as tables and as JSON, and what it says when it cannot."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from language_features import write_study

from saeflow.catalog import queries
from saeflow.command_line import main
from saeflow.terminal import escaped

RUN, OTHER = "tales/tiny/model.layers.1/topk_3x", "more/tiny/model.layers.1/jumprelu_3x"


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """Two studies, each with its catalog."""
    root = tmp_path_factory.mktemp("results")
    for study in (write_study(root), write_study(root, "more", architecture="jumprelu", seed=1)):
        assert main(["load", str(study)]) == 0
    return root


@pytest.fixture
def saeflow(results, capsys, monkeypatch):
    monkeypatch.delenv("SAEFLOW_CATALOG_URL", raising=False)
    capsys.readouterr()

    def run(*words, status=0):
        where = [] if words[0] in ("load", "verify", "upload", "--help") else ["--results", str(results)]
        assert main([*words, *where]) == status
        captured = capsys.readouterr()
        return captured.err if status else json.loads(captured.out) if "--json" in words else captured.out

    return run


def features_of(results, run):
    study, *place = run.split("/")
    return pq.read_table(results.joinpath(study, "language", "features", *place, "features.parquet")).to_pylist()


def test_runs_of_all_catalogs_are_listed_by_name(saeflow):
    found = saeflow("runs", "list", "--json")
    assert [row["name"] for row in found] == [OTHER, RUN]
    assert found[1]["d_sae"] == 48
    assert found[1]["loaded_at"].endswith("+00:00")
    table = saeflow("runs", "list")
    assert RUN in table
    assert OTHER in table


def test_runs_are_compared_row_by_row(saeflow):
    found = saeflow("runs", "compare", "topk_3x", "jumprelu_3x", "--json")
    rows = {row["key"]: row for row in found["rows"]}
    assert (found["a"], found["b"]) == (RUN, OTHER)
    assert rows["d_in"]["equal"]
    assert rows["l0"]["difference"] == rows["l0"]["b"] - rows["l0"]["a"]
    shown = saeflow("runs", "compare", "topk_3x", "jumprelu_3x")
    assert "equal rows left out" in shown
    assert "d_in" not in shown
    assert "d_in" in saeflow("runs", "compare", "topk_3x", "jumprelu_3x", "--all")


def test_features_are_counted_and_listed(saeflow, results):
    table = features_of(results, RUN)
    counts = {row["name"]: row for row in saeflow("features", "list", "--json")}
    assert counts[RUN]["features"] == 48
    assert counts[RUN]["dead"] == sum(row["dead"] for row in table)
    assert counts[RUN]["dense"] == sum(row["density"] > 0.1 for row in table)
    listed = saeflow("features", "list", "topk", "--limit", "5", "--offset", "10", "--json")
    assert [row["feature"] for row in listed] == [10, 11, 12, 13, 14]
    assert [row["density"] for row in listed] == [row["density"] for row in table[10:15]]


def test_top_features_are_the_most_interpretable_that_are_not_dense(saeflow):
    scores = [row["interpretability"] for row in saeflow("features", "list", "topk", "-n", "48", "--json")]
    top = saeflow("features", "top", "topk", "--dense", "-n", "6", "--json")
    assert [row["interpretability"] for row in top] == sorted((s for s in scores if s is not None), reverse=True)[:6]
    assert all(row["density"] <= 0.1 for row in saeflow("features", "top", "topk", "-n", "48", "--json"))
    assert "peaks on" in saeflow("features", "top", "topk", "--dense")


def test_a_run_is_analyzed_whole(saeflow, results):
    found = saeflow("features", "analyze", "topk", "--json")
    living = [row["density"] for row in features_of(results, RUN) if not row["dead"]]
    assert found["features"]["n"] - found["features"]["dead"] == len(living)
    assert min(living) <= found["features"]["quantiles"]["density"]["0.5"] <= max(living)
    shown = saeflow("features", "analyze", "topk")
    assert "explained_variance" in shown
    assert "48 features" in shown


def test_details_show_the_contexts_with_their_peak(saeflow, results):
    found = saeflow("features", "details", "topk", "3", "--limit", "2", "--json")
    contexts = pq.read_table(next((results / "tales").rglob("contexts.parquet")), filters=[("feature", "==", 3)])
    assert found["contexts"] == contexts.slice(0, 2).to_pylist()
    shown = saeflow("features", "details", "topk", "3")
    peak = found["contexts"][0]
    assert f"«{peak['tokens'][peak['position']]}»" in shown
    assert "promotes" in shown


def test_details_without_the_studys_files_show_what_the_catalog_keeps(saeflow, results, tmp_path):
    catalog = tmp_path / "alone.sqlite"
    catalog.write_bytes((results / "tales" / "catalog.sqlite").read_bytes())
    found = saeflow("features", "details", "topk", "3", "--json")
    shown = saeflow("features", "details", "topk", "3", "--catalog", str(catalog), "--results", str(tmp_path / "none"))
    assert f"«{found['evidence']['examples'][0]['token']}»" in shown


def test_search_finds_words_in_labels_before_those_in_contexts(saeflow):
    found = saeflow("features", "search", "DOG", "-n", "40", "--json")
    assert {row["run"] for row in found} == {RUN, OTHER}
    in_label = [row["in_label"] for row in found]
    assert all("dog" in row["label"].lower() for row in found if row["in_label"])
    assert in_label == sorted(in_label, reverse=True)
    assert set(in_label) == {True, False}
    one = saeflow("features", "search", "dog", "--run", "jumprelu", "--json")
    assert {row["run"] for row in one} == {OTHER}
    assert saeflow("features", "search", "no_such_word", "--json") == []
    assert saeflow("features", "search", "100%", "--json") != saeflow("features", "search", "100_", "--json") == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["features", "top", "topk_4x"], f"no run is called 'topk_4x'; nearest: {RUN}"),
        (["features", "top", "tiny"], "part of 2 runs; say which: "),
        (["features", "details", "topk", "48"], f"{RUN} has no feature 48; it has features 0 to 47"),
        (["features", "details", "topk", str(2**31 - 1)], "it has features 0 to 47"),
        (["features", "top", "x" * 600], "600 characters; a run's name has 512 at most"),
        (["features", "search", " "], "the text is empty"),
        (["features", "search", "a\0"], "character of number 0"),
        (["features", "search", *["word"] * 15_000], "15,000 words, 74,999 characters; give 32 words"),
        (["runs", "list", "--catalog", "lost.sqlite"], "lost.sqlite: no such catalog"),
        (["load", "lost"], "lost: no such folder"),
    ],
)
def test_errors_say_what_would_be_right(saeflow, words, said):
    assert said in saeflow(*words, status=1)


def test_without_a_catalog_it_says_how_to_get_one(tmp_path, capsys):
    assert main(["runs", "list", "--results", str(tmp_path)]) == 1
    assert "`snakemake catalog` builds one" in capsys.readouterr().err


def test_a_wrong_call_shows_the_usage():
    numbers = (["-n", "0"], ["-n", "9" * 30], ["-n", "²"], ["-n", "9" * 5000])
    for words in ([], ["features"], ["features", "top"], *(["features", "top", "x", *number] for number in numbers)):
        with pytest.raises(SystemExit) as stopped:
            main(words)
        assert stopped.value.code == 2


HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202eabc[red]\x7f"


@pytest.fixture
def hostile(tmp_path) -> Path:
    """A study whose labels, tokens and contexts carry escape sequences."""
    folder = write_study(tmp_path)
    for path in folder.rglob("*.parquet"):
        table = pq.read_table(path).to_pylist()
        for row in table:
            row |= {
                name: [HOSTILE] * len(row[name]) for name in ("tokens", "top_tokens", "bottom_tokens") if name in row
            }
        pq.write_table(pa.Table.from_pylist(table, schema=pq.read_schema(path)), path)
    assert main(["load", str(folder)]) == 0
    return tmp_path


@pytest.mark.parametrize(
    "words",
    [
        ("features", "top", "topk", "--dense"),
        ("features", "details", "topk", "0"),
        ("features", "search", "owned"),
        ("features", "analyze", "topk"),
        ("features", "top", HOSTILE),
        ("verify", HOSTILE),
    ],
)
@pytest.mark.parametrize("form", ["table", "json"])
def test_labels_reach_a_terminal_without_their_escape_sequences(hostile, capsys, words, form):
    capsys.readouterr()
    where = [] if words[0] == "verify" else ["--results", str(hostile)]
    main([*words, *where, *(["--json"] if form == "json" else [])])
    shown = "".join(capsys.readouterr())
    assert all(c.isprintable() or c == "\n" for c in shown)
    assert "owned" in shown or words[1] == "analyze"


def test_json_is_equal_when_it_is_read_in_any_encoding():
    text = json.dumps({"label": HOSTILE + "é✓\U0001d538\n"}, ensure_ascii=False, indent=2)
    for encoding in ("utf-8", "latin-1", "ascii"):
        shown = escaped(text, encoding)
        shown.encode(encoding)
        assert json.loads(shown) == json.loads(text)
    assert escaped('"é✓"') == '"é✓"'


def test_the_environment_names_a_catalog_for_all_studies(saeflow, results, tmp_path, monkeypatch):
    monkeypatch.setenv("SAEFLOW_CATALOG_URL", f"sqlite:///{tmp_path}/all.sqlite")
    for study in ("tales", "more"):
        saeflow("load", str(results / study))
    (results / "tales" / "catalog.sqlite").rename(tmp_path / "aside")
    try:
        assert [row["name"] for row in saeflow("runs", "list", "--json")] == [OTHER, RUN]
    finally:
        (tmp_path / "aside").rename(results / "tales" / "catalog.sqlite")


def test_a_name_that_is_whole_wins_over_its_continuations():
    assert queries.resolve("a/b", ["a/b", "a/b2"]) == "a/b"
    with pytest.raises(queries.UnknownError, match="the catalog is empty"):
        queries.resolve("a", [])


def test_python_dash_m_is_the_command_and_a_closed_pipe_is_no_error(results):
    command = f"{sys.executable} -m saeflow features list topk -n 48 --results {results} | head -n 1"
    scripts = str(Path(__file__).parents[2] / "scripts")
    environment = {"PYTHONPATH": scripts, "PATH": "/usr/bin:/bin"}
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], env=environment, capture_output=True)
    assert done.stdout.strip().decode() == RUN
    assert done.stderr == b""


def test_it_starts_without_torch():
    scripts = str(Path(__file__).parents[2] / "scripts")
    code = "import sys; import saeflow.command_line, saeflow.catalog.places, saeflow.catalog.presentation; "
    code += "sys.exit(any(name in sys.modules for name in ('torch', 'pandas')))"
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": scripts}).returncode == 0


def test_the_command_lies_beside_the_python_that_it_was_installed_for(tmp_path):
    command = Path(sys.executable).parent / "saeflow"
    asked = subprocess.run([command, "runs", "list", "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert asked.returncode == 0, asked.stderr
    assert asked.stdout.startswith("usage: saeflow runs list")
