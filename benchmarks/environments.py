"""Environments of other packages, each made by uv from a hashed lock file.

    python benchmarks/environments.py create NAME   make it unless it is up to date; prints its interpreter
    python benchmarks/environments.py lock NAME     pin what NAME.in allows today

torch and its CUDA libraries are not in these locks: where the .in names torch, they come from envs/torch-cpu.lock, or
where no CPU build is offered from envs/torch-cuda.lock. torchvision is left out: nothing compared here needs it, and
beside a CPU build of torch it would need envs/torchvision_schemas.py. A lock takes wheels alone, but for the packages
that its `--no-binary` lines name; envs/build.lock has what builds them.
"""

import argparse
import fcntl
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCKS = {
    path.stem: path.with_suffix(".lock")
    for folder in (ROOT / "tests" / "envs", ROOT / "benchmarks" / "peers")
    for path in sorted(folder.glob("*.in"))
}
TORCH_LOCKS = tuple(ROOT / "envs" / f"torch-{build}.lock" for build in ("cpu", "cuda"))
BUILD_LOCK = ROOT / "envs" / "build.lock"
PIP_SETTINGS = (("FIND_LINKS", "FIND_LINKS"), ("DEFAULT_INDEX", "INDEX_URL"))
TORCH = re.compile(r"(torch|triton|nvidia-|cuda-)")


class NotInstallableError(RuntimeError):
    """An environment that cannot be made here; carries the installer's last words."""


def create(name: str) -> Path:
    """Interpreter of the environment of a package, which is made or brought up to date if need be.

    Safe to call from several processes at once.

    Raises:
        NotInstallableError: no network, no wheel for this Python, or a digest that does not match.
    """
    lock = _lock_of(name)
    folder = lock.parents[1] / ".envs" / name
    python, stamp = folder / "bin" / "python", folder / ".digest"
    folder.parent.mkdir(exist_ok=True)
    with open(folder.with_suffix(".busy"), "w") as busy:
        fcntl.flock(busy, fcntl.LOCK_EX)
        digest = hashlib.sha256(lock.read_bytes() + sys.version.encode()).hexdigest()
        if not (stamp.is_file() and stamp.read_text() == digest):
            _uv("venv", "--quiet", "--clear", "--python", sys.executable, folder)
            _install(python, lock)
            stamp.write_text(digest)
    return python


def _install(python: Path, lock: Path) -> None:
    """Install a lock, which is complete, with the first build of torch that this machine offers if its .in names it."""
    install = ("pip", "install", "--quiet", "--no-deps", "--require-hashes", "--no-build-isolation", "--python", python)
    _uv(*install, "-r", BUILD_LOCK)
    excluded = python.parents[1] / ".excluded"
    excluded.write_text("torchvision\n")
    torches = TORCH_LOCKS if re.search("^torch", lock.with_suffix(".in").read_text(), re.MULTILINE) else (None,)
    for torch in torches:
        files = [argument for file in (torch, lock) if file for argument in ("-r", file)]
        try:
            _uv(*install, "--excludes", excluded, *files)
        except NotInstallableError:
            if torch is torches[-1]:
                raise
        else:
            return


def lock(name: str) -> None:
    """Write the newest versions that NAME.in allows, with their digests and without torch."""
    target = _lock_of(name)
    flags = "--universal --fork-strategy fewest --python-version 3.11 --generate-hashes"
    flags += " --no-header --no-annotate --no-emit-index-url --no-build-isolation --quiet"
    source = target.with_suffix(".in")
    pins = _uv("pip", "compile", *flags.split(), "--python", sys.executable, source)
    options = re.findall(r"^--.*\n", source.read_text(), re.MULTILINE)
    blocks = re.findall(r"^[a-zA-Z0-9].*?(?=^\S|\Z)", pins, re.DOTALL | re.MULTILINE)
    target.write_text("".join(options + [block for block in blocks if not TORCH.match(block)]))


def _lock_of(name: str) -> Path:
    if name not in LOCKS:
        raise NotInstallableError(f"no environment is called '{name}'; known: {', '.join(LOCKS)}")
    return LOCKS[name]


def _uv(*arguments: object) -> str:
    """Standard output of uv, given pip's settings, which it does not read by itself."""
    environment = {
        "UV_" + key: os.environ["PIP_" + theirs] for key, theirs in PIP_SETTINGS if "PIP_" + theirs in os.environ
    }
    environment |= os.environ
    command = [sys.executable, "-m", "uv", *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise NotInstallableError(f"uv {arguments[0]} failed:\n{done.stderr.strip()[-2000:]}")
    return done.stdout


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("create", "lock"))
    parser.add_argument("name", choices=LOCKS)
    arguments = parser.parse_args()
    try:
        result = {"create": create, "lock": lock}[arguments.what](arguments.name)
    except NotInstallableError as error:
        sys.exit(str(error))
    if result:
        print(result)
