"""What people ask a catalog: runs, their best features, one feature, a text, two runs side by side."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sqlalchemy import Connection, Select, and_, case, func, select

from saeflow.catalog.schema import ConceptScore, DiscoveredFeature, InjectionResult, SAEModel, TrainingRun

F, R, S = DiscoveredFeature, TrainingRun, SAEModel
DENSE = 0.1
"""Density above which a feature counts as dense."""
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
SUMMARY = ("l0", "explained_variance", "dead_share", "ce_recovered_zero", "ce_recovered_mean", "accuracy_change_pp")


LONGEST_NAME, LONGEST_TEXT, MOST_WORDS = 512, 1000, 32
"""Characters of a run's name and of what is searched for, and its words, at most: each word reads every feature."""
_HIGHEST = 2**31 - 1  # that a column of a feature's number holds


class UnknownError(LookupError):
    """A run or a feature that no catalog holds; the message says which are near."""


class QuestionError(ValueError):
    """A question that has no answer; says what would be right."""


def runs(connection: Connection) -> list[dict[str, Any]]:
    """All runs with their SAE and its summary, by name."""
    columns = [R.name, R.kind, R.study, R.seed, S.architecture, S.d_in, S.d_sae, *(getattr(S, m) for m in SUMMARY)]
    return _rows(connection, select(*columns, R.loaded_at).outerjoin(S, S.run_id == R.id).order_by(R.name))


def names(connection: Connection) -> list[str]:
    """Names of all runs, sorted."""
    return list(connection.execute(select(R.name).order_by(R.name)).scalars())


def resolve(asked: str, known: Sequence[str]) -> str:
    """The one run that a name means: the whole name, or any part of it that is in no other.

    Raises:
        UnknownError: none or several; lists them, or the nearest names.
        QuestionError: longer than any name.
    """
    if len(asked) > LONGEST_NAME:
        raise QuestionError(f"run: {len(asked):,} characters; a run's name has {LONGEST_NAME} at most")
    if asked in known:
        return asked
    found = [name for name in known if asked in name]
    if len(found) == 1:
        return found[0]
    if found:
        raise UnknownError(f"'{asked}' is part of {len(found)} runs; say which: {_some(found)}")
    if not known:
        raise UnknownError(f"no run is called '{asked}': the catalog is empty; build a study or `saeflow load` one")
    ends = {name.rpartition("/")[2]: name for name in known}
    near = difflib.get_close_matches(asked, known, n=5, cutoff=0.4)
    near += [ends[end] for end in difflib.get_close_matches(asked, ends, n=5, cutoff=0.4) if ends[end] not in near]
    raise UnknownError(f"no run is called '{asked}'; nearest: {_some(near or list(known))}")


def run_of(connection: Connection, name: str) -> dict[str, Any]:
    """Everything about a run but its features and curve: its columns and its SAE's."""
    row = connection.execute(select(*R.__table__.c).where(R.name == name)).mappings().one()
    sae = connection.execute(select(*S.__table__.c).where(S.run_id == row["id"])).mappings().one_or_none()
    return _plain(row) | {"sae": None if sae is None else _plain(sae)}


def feature_counts(connection: Connection) -> list[dict[str, Any]]:
    """A row per run with features: how many, how many dead and dense, how interpretable on average."""
    alive = F.dead.is_(False)
    query = (
        select(
            R.name,
            func.count().label("features"),
            func.sum(case((F.dead, 1), else_=0)).label("dead"),
            func.sum(case((F.density > DENSE, 1), else_=0)).label("dense"),
            func.avg(case((alive, F.interpretability))).label("mean_interpretability"),
        )
        .join(F, F.run_id == R.id)
        .group_by(R.name)
        .order_by(R.name)
    )
    return _rows(connection, query)


SHOWN = (F.feature, F.density, F.mean_activation, F.max_activation, F.interpretability, F.label)


def features(connection: Connection, run: str, *, limit: int, offset: int = 0) -> list[dict[str, Any]]:
    """Features of a run in their order; none behind the last."""
    return _rows(connection, _of(run).order_by(F.feature).limit(limit).offset(min(offset, _HIGHEST)))


def top(connection: Connection, run: str, *, limit: int, dense: bool = False) -> list[dict[str, Any]]:
    """The most interpretable features, the stronger first among equals.

    Arguments:
        dense: also those that fire on more than a tenth of the tokens or images.
    """
    query = _of(run).where(F.interpretability.is_not(None))
    if not dense:
        query = query.where(F.density <= DENSE)
    return _rows(connection, query.order_by(F.interpretability.desc(), F.max_activation.desc(), F.feature).limit(limit))


def feature(connection: Connection, run: str, index: int) -> dict[str, Any]:
    """One feature with its evidence and the concepts that it is among the best for.

    Raises:
        UnknownError: the run has no such feature; says which it has.
    """
    query = select(F.__table__).join(R).where(R.name == run, F.feature == index)
    row = connection.execute(query).mappings().one_or_none() if 0 <= index <= _HIGHEST else None
    if row is None:
        last = connection.execute(select(func.max(F.feature)).join(R).where(R.name == run)).scalar()
        has = "no features" if last is None else f"features 0 to {last}"
        raise UnknownError(f"{run} has no feature {index}; it has {has}")
    scores = select(ConceptScore.__table__).where(ConceptScore.run_id == row["run_id"], ConceptScore.feature == index)
    found = {key: value for key, value in row.items() if key not in ("run_id", "searchable")}
    return found | {"concepts": _rows(connection, scores.order_by(ConceptScore.concept))}


def words_of(text: str) -> list[str]:
    """Words of a search.

    Raises:
        QuestionError: none, too many, or a character that no text has.
    """
    words = text.split()
    if not words:
        raise QuestionError("search: the text is empty; give a word")
    if len(text) > LONGEST_TEXT or len(words) > MOST_WORDS:
        raise QuestionError(
            f"search: {len(words):,} words, {len(text):,} characters; give {MOST_WORDS} words and {LONGEST_TEXT:,} "
            "characters at most"
        )
    if "\0" in text:
        raise QuestionError("search: the text has a character of number 0, which no text of a feature has")
    return words


def search(connection: Connection, words: Sequence[str], *, limit: int, run: str | None = None) -> list[dict[str, Any]]:
    """Features whose label, tokens or contexts hold all words, as they are but for case; in the order of `relevance`.

    Arguments:
        words: of `words_of`.

    Rows say by `in_label` whether the label itself holds them.
    """
    held = (F.searchable.contains(word.lower(), autoescape=True) for word in words)
    in_label = and_(*(func.lower(F.label).contains(word.lower(), autoescape=True) for word in words))
    query = select(R.name.label("run"), *SHOWN, case((in_label, True), else_=False).label("in_label"))
    query = query.join(R, R.id == F.run_id).where(*held, F.dead.is_(False))
    if run is not None:
        query = query.where(R.name == run)
    best = (case((in_label, 0), else_=1), func.coalesce(F.interpretability, 0).desc(), R.name, F.feature)
    return _rows(connection, query.order_by(*best).limit(limit))


def relevance(found: dict[str, Any]) -> tuple[Any, ...]:
    """Sort key of what `search` finds: in the label first, then the most interpretable."""
    return not found["in_label"], -(found["interpretability"] or 0), found["run"], found["feature"]


def concepts(connection: Connection, run: str) -> list[dict[str, Any]]:
    """The best feature of each concept, beside what it is compared with."""
    columns = [column for column in ConceptScore.__table__.c if column.name not in ("run_id", "rank")]
    query = select(*columns).join(R, R.id == ConceptScore.run_id).where(R.name == run, ConceptScore.rank == 1)
    return _rows(connection, query.order_by(ConceptScore.auroc.desc(), ConceptScore.concept))


def analyze(connection: Connection, run: str) -> dict[str, Any]:
    """What the features of a run are like together: counts, quantiles, concepts; medians of methods for injection."""
    about = run_of(connection, run)
    rows = connection.execute(
        select(F.dead, F.density, F.max_activation, F.interpretability).join(R).where(R.name == run)
    ).all()
    result = {"run": about, "features": None, "concepts": concepts(connection, run), "injection": []}
    if rows:
        dead, density, strongest, score = (np.array(column, float) for column in zip(*rows, strict=True))
        alive = dead == 0
        result["features"] = {
            "n": len(rows),
            "dead": int(dead.sum()),
            "dense": int((density > DENSE).sum()),
            "rare": int(((density < 1e-4) & alive).sum()),
            "quantiles": {
                name: dict(zip(map(str, QUANTILES), _quantiles(values[alive]), strict=True))
                for name, values in (("density", density), ("max_activation", strongest), ("interpretability", score))
            },
        }
    if about["kind"] == "injection":
        i = InjectionResult
        means = [func.avg(getattr(i, name)).label(name) for name in ("transfer", "preservation", "specificity")]
        query = select(i.method, i.variant, i.tier, *means, func.count().label("n")).join(R)
        query = query.where(R.name == run, i.control == "").group_by(i.method, i.variant, i.tier)
        result["injection"] = _rows(connection, query.order_by(func.avg(i.transfer).desc()))
    return result


def difference(a: dict[str, Any], b: dict[str, Any]) -> list[dict[str, Any]]:
    """Two runs of `run_of` side by side: a row per setting or metric, with the difference where it is a number."""
    left, right = _flat(a), _flat(b)
    rows = []
    for key in [*left, *(key for key in right if key not in left)]:
        x, y = left.get(key), right.get(key)
        number = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (x, y))
        rows.append({"key": key, "a": x, "b": y, "difference": y - x if number else None, "equal": x == y})
    return rows


def _flat(run: dict[str, Any]) -> dict[str, Any]:
    sae = run["sae"] or {}
    found = {key: run[key] for key in ("kind", "model", "model_revision", "hook_point", "variant", "seed")}
    found |= {key: sae.get(key) for key in ("architecture", "d_in", "d_sae")}
    found |= {f"config.{key}": value for key, value in sorted(run["config"].items()) if not isinstance(value, dict)}
    return found | dict(sorted((sae.get("metrics") or {}).items()))


def _of(run: str) -> Select[Any]:
    return select(*SHOWN).join(R, R.id == F.run_id).where(R.name == run)


def _quantiles(values: np.ndarray) -> list[float | None]:
    values = values[~np.isnan(values)]
    return [float(q) for q in np.quantile(values, QUANTILES)] if len(values) else [None] * len(QUANTILES)


def _rows(connection: Connection, query: Select[Any]) -> list[dict[str, Any]]:
    return [_plain(row) for row in connection.execute(query).mappings()]


def _plain(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in ("id", "run_id")}


def _some(names: Sequence[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
