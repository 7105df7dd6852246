"""Named checks of a package, each independent of the others: what fails is what is wrong, not what follows from it."""

from saeflow.publish.verification import export, files, upload, weights
from saeflow.publish.verification.checks import CHECKS, Result, verify

__all__ = ["CHECKS", "Result", "verify"]

_ORDER = [module.__name__ for module in (files, weights, upload, export)]
CHECKS.sort(key=lambda check: _ORDER.index(check.find.__module__))
