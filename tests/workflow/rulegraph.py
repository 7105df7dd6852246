"""Write the workflow's rulegraph into the README; `python tests/workflow/rulegraph.py` after a change of the rules."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
BLOCK = re.compile(r"(<!-- rulegraph -->\n```mermaid\n).*?(```\n)", re.DOTALL)


def graph() -> str:
    """The rulegraph of the default study, as Snakemake draws it in mermaid-js."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", ROOT]
    run = subprocess.run(
        [*command, "--rulegraph", "mermaid-js", "--forceall"], capture_output=True, text=True, check=True
    )
    return run.stdout[run.stdout.index("flowchart") if "flowchart" in run.stdout else 0 :].strip() + "\n"


def shown() -> str:
    """The rulegraph that the README shows."""
    return BLOCK.search(README.read_text()).group(0).partition("mermaid\n")[2].removesuffix("```\n")


if __name__ == "__main__":
    README.write_text(BLOCK.sub(lambda match: match.group(1) + graph() + match.group(2), README.read_text()))
