"""Write the workflow's rulegraph into the README; `python tests/workflow/rulegraph.py` after a change of the rules."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
BLOCK = re.compile(r"(<!-- rulegraph -->\n```mermaid\n).*?(```\n)", re.DOTALL)


def graph() -> str:
    """The rulegraph of a study of images with injection, from `snakemake --rulegraph mermaid-js`.

    Snakemake numbers the rules and orders the arrows anew at each call: here each rule goes by its name, sorted, and a
    line has all arrows from one rule.
    """
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", ROOT, "--forceall"]
    command += ["--configfile", ROOT / "config/studies/smoke.yaml", "--rulegraph", "mermaid-js"]
    drawn = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    names = dict(re.findall(r"^\s*(id\d+)\[(\w+)\]", drawn, re.MULTILINE))
    arrows = re.findall(r"^\s*(id\d+) --> (id\d+)", drawn, re.MULTILINE)
    reached: dict[str, set[str]] = {}
    for a, b in arrows:
        reached.setdefault(names[a], set()).add(names[b])
    return "flowchart TB\n" + "".join(f"    {a} --> {' & '.join(sorted(reached[a]))}\n" for a in sorted(reached))


def shown() -> str:
    """The rulegraph that the README shows."""
    return BLOCK.search(README.read_text()).group(0).partition("mermaid\n")[2].removesuffix("```\n")


def main() -> None:
    drawn = graph()
    README.write_text(BLOCK.sub(lambda match: match.group(1) + drawn + match.group(2), README.read_text()))


if __name__ == "__main__":
    main()
