"""saeflow: whole sparse-autoencoder studies as a Snakemake workflow, and the library that its scripts call."""

import gc
import os
import sys

__version__ = "0.1.0"

# Parts of the folders that packages are installed in, and of those that Snakemake mounts such a folder of the host as.
_PACKAGES = ("site-packages", "dist-packages", "snakemake_searchpaths")


def _forget_foreign_packages() -> None:
    """Take from `sys.path` what Snakemake appended from the interpreter that runs the workflow.

    A `script:` job gets the workflow's own search path behind its own, so that inside a container or a conda env a
    package missing there would silently be imported from the host. `SAEFLOW_ISOLATE=0` keeps the path as it is.
    """
    if os.environ.get("SAEFLOW_ISOLATE", "1") == "0":
        return
    prefixes = {os.path.realpath(prefix) for prefix in (sys.prefix, sys.base_prefix)}
    scripts = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

    def ours(path: str) -> bool:
        real = os.path.realpath(path)
        return not any(part in real for part in _PACKAGES) or any(real.startswith(p + os.sep) for p in prefixes)

    sys.path[:] = [scripts, *(path for path in sys.path if path != scripts and ours(path))]


if "snakemake.script" in sys.modules or any("snakemake_searchpaths" in path for path in sys.path):
    _forget_foreign_packages()

if hasattr(sys.modules["__main__"], "snakemake"):
    # In a job, until `rule.run`: what is imported is no garbage, and looking for some is a tenth of the imports' time.
    gc.disable()
