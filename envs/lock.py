"""Pin requirements.in into requirements.lock (everything) and torch-cuda.lock (torch with torchvision and its CUDA
libraries), and what each extra's file adds to it into a lock of its own.

torch has two builds: the CUDA build that the package index serves, and a CPU build that a machine may offer on its own
(find-links or an own index). A lock line can name only one, so torch lives in files of its own: torch-cuda.lock is
written here; in torch-cpu.lock torch itself is kept by hand because no public index lists its digest. Both have the
index's torchvision (see torchvision_schemas.py).

Every byte that installs is hashed: a lock takes wheels alone, but for the packages that its `--no-binary` lines name.
These are built without isolation, by what build.lock pins, which is installed first.
"""

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
EXTRAS = ("serve", "slurm", "tracking")
BUILDERS = ("setuptools",)
CUDA = re.compile(r"(torch|triton|nvidia-|cuda-)")


def main() -> None:
    blocks = pins("requirements.in")
    write("requirements.lock", "requirements.in", [block for block in blocks if not CUDA.match(block)])
    write("torch-cuda.lock", "requirements.in", [block for block in blocks if CUDA.match(block)])
    write("build.lock", "requirements.in", [block for block in blocks if name_of(block) in BUILDERS])
    cpu = [block for block in parts((HERE / "torch-cpu.lock").read_text(encoding="utf-8")) if name_of(block) == "torch"]
    write("torch-cpu.lock", "requirements.in", cpu + [block for block in blocks if name_of(block) == "torchvision"])
    # Installed on top of the environment, so that it never holds another version of a package that is there.
    for extra in EXTRAS:
        on_top = pins(f"{extra}.in", "--constraint", HERE / "requirements.lock")
        others = [block for block in on_top if name_of(block) not in map(name_of, blocks)]
        write(f"{extra}.lock", f"{extra}.in", others)


def pins(source: str, *flags: str | Path) -> list[str]:
    """The lines of each package that the source allows today, with their digests."""
    command = "uv pip compile --universal --fork-strategy fewest --python-version 3.11 --generate-hashes"
    command += " --no-header --no-annotate --no-emit-index-url --no-build-isolation --quiet"
    run = [sys.executable, "-m", *command.split(), "--python", sys.executable, HERE / source, *flags]
    return parts(subprocess.run(run, check=True, capture_output=True, encoding="utf-8").stdout)


def parts(lines: str) -> list[str]:
    """The lines of each package of a lock."""
    return re.findall(r"^[a-zA-Z0-9].*?(?=^\S|\Z)", lines, re.DOTALL | re.MULTILINE)


def name_of(block: str) -> str:
    return block.partition("==")[0]


def write(name: str, source: str, blocks: list[str]) -> None:
    """Write packages with the options of their source on what may be built."""
    options = re.findall(r"^--.*\n", (HERE / source).read_text(encoding="utf-8"), re.MULTILINE)
    (HERE / name).write_text("".join(options + blocks), encoding="utf-8")


if __name__ == "__main__":
    main()
