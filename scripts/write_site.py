"""Write the pages of the study's site, and the assets that they share.

The data of single features and of the run are written by `write_site_features` and `write_site_run`.
"""

from importlib import resources
from pathlib import Path

import pandas as pd

from saeflow.datasets.images import ImageDataset
from saeflow.publish.site import inversion as inversion_tables
from saeflow.publish.site import pages
from saeflow.rule import run


def main(
    *,
    tables: list[Path],
    language: list[Path],
    injection: list[Path],
    images: Path | list[Path],
    inversion: list[Path],
    geometry: list[Path],
    index: Path,
    cfg: dict,
) -> None:
    """
    Arguments:
        tables: of the classifiers, their SAEs and features, as far as the study has them.
        language: tables of `gather_tables_language`; none without language models.
        injection: `summary`, `pairs`, `curve`, `confusion` and `examples` of the injection study; none without one.
        images: .npz of `build_dataset`; empty without an injection study.
        inversion: tables of each SAE's inversion, below folders of its model, hook point and variant; none without one.
        geometry: tables of each language model's geometry, below a folder of its name; none without one.
        index: index.html, written into the folder of the site beside the other pages.
        cfg: `study` (the whole config).
    """
    measured: dict[str, dict[str, pd.DataFrame]] = {}
    for path in geometry:
        measured.setdefault(path.parent.parent.name, {})[path.stem] = pd.read_parquet(path)
    study = pages.Study(
        config=cfg["study"],
        tables={path.stem: pd.read_parquet(path) for path in tables},
        language={path.stem: pd.read_parquet(path) for path in language},
        injection={path.stem: pd.read_parquet(path) for path in injection},
        images=ImageDataset.load(images).test if injection else None,
        inversion=inversion_tables.read(inversion),
        geometry=measured,
    )
    pages.write(study, index.parent, Path(str(resources.files("plotly") / "package_data" / "plotly.min.js")))


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
