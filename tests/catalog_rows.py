"""What a catalog holds, and a run as large as one has to be, for tests of both databases."""

from itertools import islice

from sqlalchemy import Engine, select

from saeflow.catalog.runs import Run
from saeflow.catalog.schema import OF_A_RUN, TrainingRun

BULK = 20_480


def rows_of(engine: Engine) -> dict[str, list[tuple]]:
    """All rows by table, each behind its run's name; without ids and load times."""
    with engine.connect() as connection:
        names = dict(connection.execute(select(TrainingRun.id, TrainingRun.name)).all())
        found = {}
        for table in (TrainingRun.__table__, *(model.__table__ for model in OF_A_RUN)):
            columns = [column for column in table.columns if column.name not in ("id", "run_id", "loaded_at")]
            key = table.columns["id" if table.name == "training_runs" else "run_id"]
            rows = connection.execute(select(key, *columns))
            found[table.name] = sorted(((names[row[0]], *row[1:]) for row in rows), key=repr)
    return found


def bulk_run(run: Run) -> Run:
    """A run of 20,480 features, each with the evidence of one of the run's own."""
    cycle = (feature for _ in range(BULK) for feature in run.features)
    features = [row | {"feature": i} for i, row in enumerate(islice(cycle, BULK))]
    return Run(run.training_run, run.sae, features)
