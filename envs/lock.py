"""Pin requirements.in into requirements.lock (everything) and torch-cuda.lock (torch with its CUDA libraries).

torch has two builds: the CUDA build that the package index serves, and a CPU build that a machine may offer on its own
(find-links or an own index). A lock line can name only one, so torch lives in files of its own:
torch-cuda.lock is written here, torch-cpu.lock is kept by hand because no public index lists its digest.
"""

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
CUDA = re.compile(r"(torch|triton|nvidia-|cuda-)")


def main() -> None:
    command = "uv pip compile --universal --fork-strategy fewest --python-version 3.11 --generate-hashes"
    flags = ["--no-header", "--no-annotate", "--no-emit-index-url", "--quiet"]
    pins = subprocess.run(
        [sys.executable, "-m", *command.split(), *flags, HERE / "requirements.in"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    blocks = re.findall(r"^[a-zA-Z0-9].*?(?=^\S|\Z)", pins, re.DOTALL | re.MULTILINE)
    for name, wanted in (("requirements.lock", False), ("torch-cuda.lock", True)):
        (HERE / name).write_text("".join(block for block in blocks if bool(CUDA.match(block)) == wanted))


if __name__ == "__main__":
    main()
