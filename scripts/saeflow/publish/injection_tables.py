"""Tables of the injection study: what every method's rows say, over pairs of architectures and seeds.

Shares lie in [0, 1]; `_std` is the sample standard deviation, over seeds, of the mean over pairs.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

VARIANT = ["method", "family", "variant", "tier", "site"]
PAIR = ["source", "target"]
OUTCOMES = ["transfer", "specificity", "preservation", "unseen_rate"]
MEASURED = [*OUTCOMES, "auroc_own", "auroc_lookalike", "transfer_noisy", "own_accuracy"]
COST = ["added_parameters", "added_multiply_adds"]
CONTROLS = ("untrained_target", "blind_source", "untrained_source", "no_lookalike_inputs")
RUNGS = ("T0", "T1", "T1+", "T2", "T3", "oracle")
FAMILIES = ("reference", "baseline", "sae", "older", "new")
DISTILLED = 0.75
"""Share of the transfer that an untrained target reaches, from which on a row that transfers at all is distillation."""
TRANSFERS = 0.5
"""Transfer from which on a row counts as one that transfers."""

KEEPS = 0.95
"""Preservation below which a row is not compared with others: weight surgery can lose what no shift gives back."""


def rung(tier: str) -> str:
    """Tier without what it adds sideways: "T1+ & B & N" is on rung "T1+"."""
    return tier.partition(" & ")[0]


def with_statistics(tier: str) -> bool:
    """Whether a tier has the source's statistics."""
    return "B" in tier.split(" & ")


def tier_order(tier: str) -> tuple[int, str]:
    """Sort key of tiers, from the least knowledge to the most."""
    return RUNGS.index(rung(tier)), tier


def plain(row: Mapping[str, Any] | str) -> str:
    """A name in words; of a row, method and variant."""
    if isinstance(row, str):
        return row.replace("_", " ").replace("sae", "SAE")
    return plain(row["method"]) + (f" ({row['variant']})" if row["variant"] else "")


def gather(paths: Iterable[Path]) -> pd.DataFrame:
    """Rows of all methods' tables; a method that applied to no pair has an empty one."""
    tables = [pd.read_parquet(path) for path in paths]
    return pd.concat([table for table in tables if len(table)], ignore_index=True)


def variants(about: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """A row per variant of every method, applied or not, in the order of the methods: the columns `VARIANT`."""
    rows = [
        {"method": content["method"], "family": content["family"]} | variant
        for content in about
        for variant in content["variants"]
    ]
    return pd.DataFrame(rows)[VARIANT]


def final(measures: pd.DataFrame, concept: int) -> pd.DataFrame:
    """Rows of the study's concept, after the last stage of methods that work in steps."""
    last = measures.groupby([*VARIANT, "control", *PAIR], sort=False)["stage"].transform("last")
    return measures[(measures["stage"] == last) & (measures["concept"] == concept)]


def pairs(measures: pd.DataFrame, concept: int, architectures: Sequence[str]) -> pd.DataFrame:
    """Mean and standard deviation over seeds, for each variant and pair, without controls; pairs in the order given."""
    rows = final(measures, concept)
    groups = rows[rows["control"] == ""].groupby([*VARIANT, *PAIR], sort=False)
    spread = groups[OUTCOMES].std(ddof=1).add_suffix("_std")
    table = pd.concat(
        [groups[[*MEASURED, *COST]].mean(), spread, groups.size().rename("n_seeds")], axis=1
    ).reset_index()
    place = {name: i for i, name in enumerate(architectures)}
    order = table.groupby(VARIANT, sort=False).ngroup().astype(int) * len(place) ** 2
    order += table["source"].map(place) * len(place) + table["target"].map(place)
    return table.loc[order.sort_values().index].reset_index(drop=True)


def controls(measures: pd.DataFrame, concept: int) -> pd.DataFrame:
    """Outcomes of each variant under each control, and of the variant itself (`control` empty)."""
    return _over_seeds(final(measures, concept), [*VARIANT, "control"], OUTCOMES)


def summary(
    measures: pd.DataFrame,
    intervals: pd.DataFrame,
    known: pd.DataFrame,
    concept: int,
) -> pd.DataFrame:
    """A row per variant, tiers from the least knowledge to the most, references first within each.

    Columns beside the means and deviations of `MEASURED` and `COST`: `n_pairs`, `n_seeds`; bootstrap intervals
    `<outcome>_low`, `<outcome>_high`; `worst_source`, `worst_target`, `worst_transfer` and `best_transfer` of the
    pairs' means over seeds; `<outcome>_<control>`; `excess`, the transfer above that of an untrained target; `reading`,
    "distillation" if at least half of the images are transferred, and an untrained target does three quarters of it.

    Arguments:
        measures, intervals: of all methods.
        known: of `variants`; one that applied to no pair keeps its row, with `n_pairs` 0.
        concept: that is injected.
    """
    rows = final(measures, concept)
    plain = rows[rows["control"] == ""]
    table = _over_seeds(plain, VARIANT, [*MEASURED, *COST]).drop(columns=[f"{name}_std" for name in COST])
    table = table.merge(_extremes(plain), on=VARIANT).merge(_bounds(intervals), on=VARIANT, how="left")
    for control in CONTROLS:
        found = rows[rows["control"] == control].groupby(VARIANT, sort=False)[["transfer", "specificity"]].mean()
        table = table.merge(found.add_suffix(f"_{control}").reset_index(), on=VARIANT, how="left")
    table["excess"] = table["transfer"] - table["transfer_untrained_target"]
    distilled = table["transfer_untrained_target"] >= DISTILLED * table["transfer"]
    distilled &= (table["transfer"] >= TRANSFERS) & (table["family"] != "reference")
    table["reading"] = distilled.map({True: "distillation", False: ""})
    table = known.merge(table, on=VARIANT, how="left", validate="one_to_one")
    for name in ("n_pairs", "n_seeds"):
        table[name] = table[name].fillna(0).astype(int)
    table["reading"] = table["reading"].fillna("")
    order = [(tier_order(row.tier), FAMILIES.index(row.family), row.Index) for row in table.itertuples()]
    return table.loc[[i for *_, i in sorted(order)]].reset_index(drop=True)


def _over_seeds(rows: pd.DataFrame, by: Sequence[str], metrics: Sequence[str]) -> pd.DataFrame:
    """Mean over pairs, then mean and deviation over seeds, with the numbers of both."""
    groups = rows.groupby([*by, "seed"], sort=False)[list(metrics)].mean().groupby(list(by), sort=False)
    n_pairs = rows.groupby([*by, *PAIR], sort=False).size().groupby(list(by), sort=False).size()
    parts = [
        groups.mean(),
        groups.std(ddof=1).add_suffix("_std"),
        n_pairs.rename("n_pairs"),
        groups.size().rename("n_seeds"),
    ]
    return pd.concat(parts, axis=1).reset_index()


def _extremes(rows: pd.DataFrame) -> pd.DataFrame:
    """The pair with the lowest transfer, and the highest transfer, of each variant."""
    means = rows.groupby([*VARIANT, *PAIR], sort=False)["transfer"].mean().reset_index()
    groups = means.groupby(VARIANT, sort=False)["transfer"]
    worst = means.loc[groups.idxmin()].rename(columns={name: f"worst_{name}" for name in [*PAIR, "transfer"]})
    return worst.merge(groups.max().rename("best_transfer").reset_index(), on=VARIANT)


def _bounds(intervals: pd.DataFrame) -> pd.DataFrame:
    """Ends of the intervals, a column each."""
    own = intervals[intervals["control"] == ""]
    wide = own.pivot(index=VARIANT, columns="metric", values=["low", "high"])
    wide.columns = [f"{metric}_{end}" for end, metric in wide.columns]
    return wide.reset_index()


def curve(points: pd.DataFrame) -> pd.DataFrame:
    """Each variant's outcomes as the weight gamma of the target's uncertainty grows, over pairs and seeds."""
    return _over_seeds(points, [*VARIANT, "gamma"], OUTCOMES)


def pareto(table: pd.DataFrame) -> pd.DataFrame:
    """Variants that inject, and which of them no other beats: none transfers as much with as few look-alikes taken.

    Returns:
        rows of a summary, without references and oracles; `penultimate`, whether the site is the last hidden layer;
        `keeps`, whether preservation is at least `KEEPS`; `on_front`, whether it does and no other that does beats it,
        penultimate or not like it; `on_front_of_tier`, the same among those of its tier.
    """
    rows = table[(table["family"] != "reference") & (table["tier"] != "oracle") & (table["n_pairs"] > 0)]
    rows = rows[[*VARIANT, "transfer", "specificity", "preservation", "excess", "reading"]].reset_index(drop=True)
    rows["penultimate"] = penultimate(rows["site"])
    rows["keeps"] = rows["preservation"] >= KEEPS
    for name, by in {"on_front": ["penultimate"], "on_front_of_tier": ["penultimate", "tier"]}.items():
        rows[name] = False
        for _, group in rows[rows["keeps"]].groupby(by, sort=False):
            rows.loc[group.index, name] = _undominated(group)
    return rows


def penultimate(site: pd.Series) -> pd.Series:
    """Whether the new logit reads the last hidden layer, as the target's own logits do."""
    return site.str.startswith("last.")


def _undominated(rows: pd.DataFrame) -> pd.Series:
    """Rows that no other equals or beats in both transfer and specificity while it beats them in one."""
    high, low = (rows[name].to_numpy() for name in ("transfer", "specificity"))
    as_good = (high >= high[:, None]) & (low <= low[:, None])
    better = (high > high[:, None]) | (low < low[:, None])
    return pd.Series(~(as_good & better).any(1), rows.index)


def sweeps(table: pd.DataFrame) -> pd.DataFrame:
    """Variants that differ in a number at the end of their name, such as `d_sae=64` or `t_0_5`.

    Returns:
        rows of a summary; `series`, what stands before the number's name, `parameter` and `value`.
    """
    found = table["variant"].str.extract(
        r"^(?:(?P<series>.*)[ ,/])?(?P<parameter>[a-z_]+?)[=_](?P<value>\d+(?:[._]\d+)?)$"
    )
    value = found["value"].str.replace("_", ".").astype(float)
    rows = table.assign(series=found["series"].fillna(""), parameter=found["parameter"], value=value)
    rows = rows[rows["value"].notna() & (rows["n_pairs"] > 0)]
    several = rows.groupby(["method", "tier", "site", "series", "parameter"])["value"].transform("nunique") > 1
    metrics = [f"{name}{end}" for name in ("transfer", "specificity", "preservation") for end in ("", "_std")]
    columns = [*VARIANT, "series", "parameter", "value", *metrics]
    return rows[several][columns].sort_values(["method", "tier", "series", "value"], ignore_index=True)


def stages(measures: pd.DataFrame, lookalike: int) -> pd.DataFrame:
    """What methods of several stages or concepts do for each concept at each stage, over pairs and seeds.

    Returns:
        `transfer`, `preservation` and `specificity` (none for the look-alike itself), in the order of the work;
        `step`, the stage's number from 0; `forgotten`, the transfer of a concept when it was injected, less that now.
    """
    plain = measures[measures["control"] == ""]
    n_kinds = plain.groupby(VARIANT, sort=False)[["stage", "concept"]].transform("nunique").max(axis=1)
    rows = _over_seeds(plain[n_kinds > 1], [*VARIANT, "stage", "concept"], ["transfer", "preservation", "specificity"])
    taken = rows["concept"] == lookalike
    rows.loc[taken, ["specificity", "specificity_std"]] = float("nan")
    rows["step"] = rows.groupby(VARIANT, sort=False)["stage"].transform(lambda names: names.factorize()[0])
    first = rows.groupby([*VARIANT, "concept"], sort=False)["transfer"].transform("first")
    return rows.assign(forgotten=first - rows["transfer"])
