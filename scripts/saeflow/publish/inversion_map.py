"""The map of a dictionary's latents, from the tables of a study."""

from pathlib import Path

import pandas as pd

from saeflow.inversion import maps


def write(path: Path, selection: pd.DataFrame, by: str, explanations: pd.DataFrame | None) -> None:
    """Write the page.

    Arguments:
        selection: table of `select_inversion_features`.
        by: clusters that are shown, `activity` or `decoder`.
        explanations: table of `explain_inversion_features`, for what is shown on hover.
    """
    shown = selection.dropna(subset=[f"{by}_x"])
    roles = shown.dropna(subset=["role"])
    told = {} if explanations is None else dict(zip(explanations["feature"], explanations["explanation"], strict=True))
    maps.write(
        path,
        shown["feature"].to_numpy(),
        shown[[f"{by}_x", f"{by}_y"]].to_numpy(float),
        shown[f"cluster_{by}"].to_numpy(int),
        dict(zip(roles["feature"], roles["role"], strict=True)),
        told,
    )
