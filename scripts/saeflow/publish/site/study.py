"""What the pages of the site are made from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from saeflow.datasets.images import ImageSplit


@dataclass(frozen=True)
class Study:
    """What the pages are made from.

    Arguments:
        config: the whole study, as builtins.
        tables: `classifiers` of studies with networks, and with their SAEs `saes` and `features_summary`.
        language: `saes` and `features_summary` of language models; empty without one.
        injection: `summary`, `pairs`, `curve`, `confusion` and `examples` of the injection study; empty without one.
        images: of the test split, for the injection study.
        inversion: what `saeflow.publish.site.inversion` reads, of each SAE by its name; empty without one.
        geometry: `GEOMETRY_TABLES` of each language model whose geometry was measured; empty without one.
    """

    config: Mapping[str, Any]
    tables: Mapping[str, pd.DataFrame]
    language: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    injection: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    images: ImageSplit | None = None
    inversion: Mapping[str, Mapping[str, pd.DataFrame]] = field(default_factory=dict)
    geometry: Mapping[str, Mapping[str, pd.DataFrame]] = field(default_factory=dict)

    @property
    def pages(self) -> dict[str, str]:
        """Files and names of the pages, in the order of the menu."""
        found = {"index.html": "Overview"}
        if "saes" in self.tables or self.language:
            found["features.html"] = "Features"
        if self.injection:
            found["injection.html"] = "Injection"
        if self.inversion:
            found["inversion.html"] = "Inversion"
        if self.geometry:
            found["geometry.html"] = "Geometry"
        return found | {"run.html": "Run"}
