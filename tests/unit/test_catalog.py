"""The catalog on SQLite: it holds what the files say, loaded whole or not at all; PostgreSQL has its own test."""

import json
import sqlite3
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from catalog_rows import BULK, bulk_run, rows_of
from language_features import write_study
from sqlalchemy import event, select

from saeflow.catalog import contexts, database, loading, runs
from saeflow.catalog.schema import Base, ConceptScore, DiscoveredFeature, EpochMetric, SAEModel, TrainingRun

NAME = "tales/tiny/model.layers.1/topk_3x"


@pytest.fixture
def study(tmp_path) -> Path:
    return write_study(tmp_path / "results")


@pytest.fixture
def catalog(tmp_path):
    return database.open_catalog(tmp_path / "catalog.sqlite")


def read_one(study: Path) -> runs.Run:
    (table,) = runs.tables_of(study)
    return runs.read(study, table)


def test_migrations_make_the_tables_that_the_models_describe(catalog):
    with catalog.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_a_catalog_is_opened_again_without_a_write(tmp_path, catalog):
    file = tmp_path / "catalog.sqlite"
    before = file.read_bytes()
    database.open_catalog(file)
    assert file.read_bytes() == before


def test_a_migration_that_is_killed_leaves_no_tables(tmp_path):
    engine = database.connect(tmp_path / "half.sqlite")

    def fail(connection, cursor, statement, *_):
        if "CREATE TABLE sae_models" in statement:
            raise KeyboardInterrupt

    event.listen(engine, "before_cursor_execute", fail)
    with pytest.raises(KeyboardInterrupt):
        database.migrate(engine)
    engine.dispose()
    with sqlite3.connect(tmp_path / "half.sqlite") as file:
        assert file.execute("SELECT name FROM sqlite_master").fetchall() == []


def test_what_was_loaded_is_what_the_files_say(catalog, study):
    run = read_one(study)
    loading.load(catalog, run)
    with catalog.connect() as connection:
        found = connection.execute(select(TrainingRun.__table__)).mappings().one()
        assert found["name"] == NAME
        assert found["loaded_at"].tzinfo is not None
        assert datetime.now(UTC) - found["loaded_at"] < timedelta(minutes=1)
        sae = connection.execute(select(SAEModel.__table__)).mappings().one()
        features = connection.execute(select(DiscoveredFeature.__table__)).mappings().all()
    summary = json.loads((study / "language/features/tiny/model.layers.1/topk_3x/summary.json").read_text())
    assert sae["l0"] == summary["l0"]
    assert sae["ce_recovered_mean"] == summary["ce_recovered_mean"]
    assert (study / sae["path"] / "cfg.json").is_file()
    table = pq.read_table(study / sae["features_path"] / "features.parquet").to_pylist()
    assert [row["density"] for row in features] == [row["density"] for row in table]
    assert features[3]["evidence"]["top_tokens"] == table[3]["top_tokens"]
    assert features[-1]["dead"]
    assert features[-1]["label"] == "dead"
    assert features[-1]["interpretability"] is None


def test_interpretability_is_the_chance_that_two_contexts_peak_on_the_same_token():
    assert contexts.consistency([" dog", " dog", " dog", " cat"]) == pytest.approx(3 / 6)
    assert contexts.consistency(["a"]) is None
    peaks = [contexts.Peak(0, 1.0, token, " the", "", "", 0) for token in (" dog", " cat", " Cat")]
    assert contexts.reading(peaks, [" barks"]) == (1.0, "follows 'the' (100% of its top contexts); promotes 'barks'")
    peaks = [contexts.Peak(0, 1.0, token, f"{i}", "", "", 0) for i, token in enumerate((" Dog", "▁dog", "Ġdog"))]
    assert contexts.reading(peaks, []) == (1.0, "peaks on 'dog' (100% of its top contexts)")


def test_loading_again_replaces_the_run_and_changes_nothing_else(catalog, study, tmp_path):
    other = read_one(write_study(tmp_path / "others", name="other", seed=1))
    loading.load(catalog, other)
    loading.load(catalog, read_one(study))
    before = rows_of(catalog)
    loading.load(catalog, read_one(study))
    assert rows_of(catalog) == before
    assert {row[0] for row in before["discovered_features"]} == {NAME, other.name}


def test_another_content_has_another_digest(study):
    before = read_one(study).training_run["digest"]
    assert read_one(study).training_run["digest"] == before
    table = next(study.rglob("features.parquet"))
    content = pq.read_table(table)
    pq.write_table(content.set_column(1, "density", pa.array([0.5] * len(content))), table)
    assert read_one(study).training_run["digest"] != before


def test_a_load_that_is_broken_off_leaves_the_catalog_as_it_was(catalog, study):
    run = read_one(study)
    loading.load(catalog, run)
    before = rows_of(catalog)
    broken = runs.Run(run.training_run, run.sae, [*run.features[:-1], run.features[0]])  # a feature twice
    with pytest.raises(database.CatalogError, match=r"catalog\.sqlite: UNIQUE.*undone as a whole"):
        loading.load(catalog, broken)
    assert rows_of(catalog) == before


def test_a_loader_that_is_killed_leaves_the_catalog_as_it_was(catalog, study, tmp_path):
    loading.load(catalog, read_one(study))
    before = rows_of(catalog)
    catalog.dispose()
    killed = """
import os, sys
from pathlib import Path
from sqlalchemy import event
from saeflow.catalog import database, loading, runs
engine = database.open_catalog(Path(sys.argv[1]))
study = Path(sys.argv[2])
@event.listens_for(engine, "after_cursor_execute")
def die(connection, cursor, statement, *_):
    if "INSERT INTO discovered_features" in statement:
        os.kill(os.getpid(), 9)
loading.load(engine, runs.read(study, *runs.tables_of(study)))
"""
    scripts = Path(__file__).parents[2] / "scripts"
    done = subprocess.run(
        [sys.executable, "-c", killed, tmp_path / "catalog.sqlite", study], env={"PYTHONPATH": str(scripts)}
    )
    assert done.returncode == -9
    assert rows_of(catalog) == before


def test_20480_features_go_in_within_five_seconds(catalog, study):
    run = bulk_run(read_one(study))
    start = time.process_time()  # SQLite works in this process; what else the machine does is left out
    loading.load(catalog, run)
    assert time.process_time() - start < 5
    with catalog.connect() as connection:
        assert len(connection.execute(select(DiscoveredFeature.feature)).all()) == BULK


def test_curves_and_concept_scores_are_read_where_they_are(catalog, study):
    sae = study / "language/saes/tiny/model.layers.1/topk_3x-s0"
    curve = {"step": [0, 10], "seed": [0, 0], "loss": [2.0, float("nan")], "l0": [40.0, 30.0]}
    pq.write_table(pa.table(curve), sae.with_name("topk_3x-s0.curves.parquet"))
    row = {"concept": "questions", "rank": 1, "feature": 4, "auroc_train": 0.9, "auroc": 0.8, "selectivity": 0.1}
    row |= {"null_p95": 0.6, "control_auroc": 0.65, "dense_auroc": 0.7, "probe_auroc": 0.95, "passed": True}
    folder = study / "language/features/tiny/model.layers.1/topk_3x/concepts"
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist([row]), folder / "scores.parquet")
    loading.load(catalog, read_one(study))
    with catalog.connect() as connection:
        points = connection.execute(select(EpochMetric.step, EpochMetric.metric, EpochMetric.value)).all()
        (score,) = connection.execute(select(ConceptScore.__table__)).mappings().all()
    assert sorted(points) == [(0, "l0", 40.0), (0, "loss", 2.0), (10, "l0", 30.0), (10, "loss", None)]
    assert row.items() <= dict(score).items()


def test_text_with_nul_and_numbers_that_are_none_become_what_databases_keep():
    assert runs._clean({"a": [float("nan"), 1.5, "x\x00y"]}) == {"a": [None, 1.5, "x\N{SYMBOL FOR NULL}y"]}


def test_a_time_without_a_zone_is_refused_and_zones_come_back_in_utc(catalog, study):
    run = read_one(study)
    with pytest.raises(Exception, match="has no time zone"):
        loading.load(catalog, runs.Run(run.training_run | {"written_at": datetime(2026, 1, 1)}, run.sae))
    east = datetime(2026, 1, 1, 12, tzinfo=timezone(timedelta(hours=5)))
    loading.load(catalog, runs.Run(run.training_run | {"written_at": east}, run.sae))
    with catalog.connect() as connection:
        (found,) = connection.execute(select(TrainingRun.written_at)).scalars()
    assert found == east
    assert found.utcoffset() == timedelta(0)


def test_errors_say_which_file_and_what_to_do(study, tmp_path, monkeypatch):
    with pytest.raises(runs.RunError, match=r"nowhere: no such folder"):
        runs.tables_of(tmp_path / "nowhere")
    with pytest.raises(runs.RunError, match="build the study first"):
        runs.tables_of(tmp_path)
    (sae,) = study.rglob("sae_weights.safetensors")
    sae.unlink()
    with pytest.raises(runs.RunError, match=r"sae_weights\.safetensors: not there"):
        read_one(study)
    with pytest.raises(database.CatalogError, match="SAEFLOW_CATALOG_URL looks like"):
        database.open_catalog("mongodb://somewhere")
    monkeypatch.setenv("SAEFLOW_CATALOG_URL", "postgresql://me:hushhush@127.0.0.1:1/lab")
    with pytest.raises(database.CatalogError) as failed:
        database.open_catalog(database.of_environment())
    assert "hushhush" not in str(failed.value)
    assert "is the database there" in str(failed.value)


def test_a_catalog_of_a_newer_version_is_left_alone(tmp_path, catalog):
    with sqlite3.connect(tmp_path / "catalog.sqlite") as file:
        file.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(database.CatalogError, match="a newer one"):
        database.open_catalog(tmp_path / "catalog.sqlite")


def test_a_peak_outside_its_context_is_an_error_that_names_the_row(study):
    path = next(study.rglob("contexts.parquet"))
    content = pq.read_table(path)
    moved = content["position"].to_pylist()
    moved[2] = 12
    at = content.schema.get_field_index("position")
    pq.write_table(content.set_column(at, "position", pa.array(moved, pa.int32())), path)
    with pytest.raises(ValueError, match=r"contexts\.parquet, row 2: position 12 is outside"):
        read_one(study)


@pytest.mark.parametrize("slip", ["postgresql:me:hunter22@host/name", "//me:hunter22@host/name", "me:hunter22@host"])
def test_a_url_that_lost_its_slashes_is_no_file_and_is_not_shown(slip):
    with pytest.raises(database.CatalogError, match="a login without ://") as raised:
        database.url_of(slip)
    assert "hunter22" not in str(raised.value)
