"""The former name of `saeflow.config.language`, which leaves with the next version."""

import warnings

from saeflow.config.language import Hook, LanguageModel, Text

__all__ = ["Hook", "LanguageModel", "Text"]

warnings.warn("saeflow.config_language is now saeflow.config.language", FutureWarning, stacklevel=2)
