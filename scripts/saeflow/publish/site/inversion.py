"""What the page of inversion shows: the map of an SAE's features, the texts that were found, explanations."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

TEXT_COLUMNS = ["feature", "method", "text", "ratio", "cross_entropy", "evaluations"]
FRONT_COLUMNS = ["feature", "text", "ratio", "cross_entropy"]
EXPLANATION_COLUMNS = ["feature", "explanation", "detection", "top_token_detection"]


def shown(tables: Mapping[str, pd.DataFrame], by: str) -> dict[str, pd.DataFrame]:
    """Tables of one SAE, as the page reads them.

    Arguments:
        tables: `selection`, and of the stages that ran `texts` and `fronts`, `explanations`.
        by: clusters that features were chosen from, `activity` or `decoder`.
    """
    selection = tables["selection"].dropna(subset=[f"{by}_x"])
    names = {f"{by}_x": "x", f"{by}_y": "y", f"cluster_{by}": "cluster"}
    found = {"map": selection[["feature", "density", "role", *names]].rename(columns=names)}
    kept = {"texts": TEXT_COLUMNS, "fronts": FRONT_COLUMNS, "explanations": EXPLANATION_COLUMNS}
    return found | {name: tables[name][columns] for name, columns in kept.items() if name in tables}


def read(paths: Iterable[Path]) -> dict[str, dict[str, pd.DataFrame]]:
    """Tables of each SAE by its name, `<model>/<hook point>/<variant>`: the folders that they lie in."""
    found: dict[str, dict[str, pd.DataFrame]] = {}
    for path in paths:
        found.setdefault("/".join(path.parts[-4:-1]), {})[path.stem] = pd.read_parquet(path)
    return found
