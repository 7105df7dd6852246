"""Pin requirements.in into requirements.lock (everything) and torch-cuda.lock (torch with its CUDA libraries), and what
each extra's file adds to it into a lock of its own.

torch has two builds: the CUDA build that the package index serves, and a CPU build that a machine may offer on its own
(find-links or an own index). A lock line can name only one, so torch lives in files of its own:
torch-cuda.lock is written here, torch-cpu.lock is kept by hand because no public index lists its digest.
"""

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
EXTRAS = ("serve", "slurm", "tracking")
CUDA = re.compile(r"(torch|triton|nvidia-|cuda-)")


def main() -> None:
    blocks = pins("requirements.in")
    write("requirements.lock", [block for block in blocks if not CUDA.match(block)])
    write("torch-cuda.lock", [block for block in blocks if CUDA.match(block)])
    # Installed on top of the environment, so that it never holds another version of a package that is there.
    for extra in EXTRAS:
        on_top = pins(f"{extra}.in", "--constraint", HERE / "requirements.lock")
        write(f"{extra}.lock", [block for block in on_top if name_of(block) not in map(name_of, blocks)])


def pins(source: str, *flags: str | Path) -> list[str]:
    """The lines of each package that the source allows today, with their digests."""
    command = "uv pip compile --universal --fork-strategy fewest --python-version 3.11 --generate-hashes"
    command += " --no-header --no-annotate --no-emit-index-url --quiet"
    run = [sys.executable, "-m", *command.split(), HERE / source, *flags]
    lines = subprocess.run(run, check=True, capture_output=True, text=True).stdout
    return re.findall(r"^[a-zA-Z0-9].*?(?=^\S|\Z)", lines, re.DOTALL | re.MULTILINE)


def name_of(block: str) -> str:
    return block.partition("==")[0]


def write(name: str, blocks: list[str]) -> None:
    (HERE / name).write_text("".join(blocks))


if __name__ == "__main__":
    main()
