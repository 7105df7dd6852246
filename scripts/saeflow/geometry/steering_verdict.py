"""Whether parent vectors steer better than directions of equal norm that mean nothing."""

import numpy as np
import pandas as pd

from saeflow.geometry.resampling import interval

RATIO = 3.0
"""How many times more the concept's own words must move than other concepts' words."""
KL_SHARE = 0.5
"""Most sibling KL, as a share of a random direction's."""
COLUMNS = ["site", "quantity", "target", "value", "low", "high", "verdict"]


def at_rise(effects: pd.DataFrame, logits: float) -> pd.DataFrame:
    """Of each concept and kind, the dose of the parent's vector that raises its own words' logits most nearly by
    `logits`; controls at the same dose, so that their norm is the same."""
    parents = effects[effects["kind"] == "parent"].copy()
    parents["distance"] = (parents["target"] - logits).abs()
    best = parents.sort_values(["distance", "dose"]).drop_duplicates(["site", "concept"])
    return effects.merge(best[["site", "concept", "dose"]], on=["site", "concept", "dose"])


def verdict(effects: pd.DataFrame, logits: float, n_resamples: int, rng: np.random.Generator) -> pd.DataFrame:
    """A row per site and condition, with intervals over resampled parents.

    - target: mean centred logit change of the vector's own words, none of which it was fitted on;
    - target over other: median over parents, at least 3;
    - sibling KL over that of a random direction of equal norm, medians: at most 0.5;
    - the same for shuffled rows' vectors, and the controls' own target, printed beside it.
    """
    rows = []
    for site, of_site in at_rise(effects, logits).groupby("site", sort=False):
        kinds = {
            kind: of_site[of_site["kind"] == kind].set_index("concept") for kind in ("parent", "random", "shuffled")
        }
        names = list(kinds["parent"].index)
        stacked = {k: t.loc[names, ["target", "other", "sibling_kl", "kl"]].to_numpy().T for k, t in kinds.items()}
        values = np.concatenate([stacked[kind] for kind in ("parent", "random", "shuffled")])
        conditions = [
            ("target, logits", "", lambda v: v[0].mean(), None),
            ("other words, logits", "", lambda v: v[1].mean(), None),
            ("target over other", f">= {RATIO}", lambda v: np.median(v[0] / v[1]), lambda x: x >= RATIO),
            ("parents whose target is 3 times other", "", lambda v: (v[0] >= RATIO * v[1]).mean(), None),
            ("sibling KL, nats", "", lambda v: np.median(v[2]), None),
            (
                "sibling KL over random direction's",
                f"<= {KL_SHARE}",
                lambda v: np.median(v[2]) / np.median(v[6]),
                lambda x: x <= KL_SHARE,
            ),
            ("sibling KL over shuffled rows'", "", lambda v: np.median(v[2]) / np.median(v[10]), None),
            ("target of random directions, logits", "", lambda v: v[4].mean(), None),
            ("target of shuffled rows' vectors, logits", "", lambda v: v[8].mean(), None),
        ]
        for name, target, statistic, holds in conditions:
            found = interval(values, np.arange(len(names)), statistic, n_resamples, rng)
            result = "" if holds is None else "pass" if holds(found[0]) else "fail"
            rows.append((site, name, target, *found, result))
    for site, children in effects[effects["kind"] == "child"].groupby("site", sort=False):
        at = children[children["dose"] == logits]
        parent_of = at["concept"].str.rpartition("/")[0].to_numpy()
        numbers = np.unique(parent_of, return_inverse=True)[1]
        for column, name in (
            ("target", "child vector, own words, logits"),
            ("siblings", "child vector, siblings, logits"),
        ):
            found = interval(at[column].to_numpy()[None], numbers, lambda v: np.nanmean(v), n_resamples, rng)
            rows.append((site, name, "", *found, ""))
    return pd.DataFrame(rows, columns=COLUMNS)
