"""What Snakemake asks of `conda`, answered with py-rattler: a real solver and a real installer of conda packages.

Run by the interpreter that has py-rattler, with two folders in the environment: CHANNEL, which is every channel, and
PREFIX, where conda would be installed.

    python conda_standin.py COMMAND...                                 answer as conda
    python conda_standin.py write-channel VERSION PYTHON < PACKAGES    fill the channel

PACKAGES is a JSON object of names and versions, for which there will be empty packages. Python's own, in VERSION, hands
over to the program PYTHON.
"""

import asyncio
import io
import json
import os
import sys
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

import yaml
from rattler import Channel, ChannelPriority, MatchSpec, VirtualPackage, install, solve
from rattler.index import index_fs

ACTIVATE = """\
[ -d "$1" ] || { echo "no environment $1" >&2; exit 1; }
export CONDA_PREFIX="$1" PATH="$1/bin:$PATH"
"""


def write_package(
    channel: Path, name: str, version: str, depends: Iterable[str] = (), files: Mapping[str, str] = MappingProxyType({})
) -> None:
    """A package of executable files, by path and content; without any it is a name and a version to solve for."""
    index = {"name": name, "version": version, "build": "0", "build_number": 0, "depends": list(depends)}
    index |= {"subdir": "noarch", "noarch": "generic", "timestamp": 1700000000000}
    paths = [{"_path": path, "path_type": "hardlink", "size_in_bytes": len(text)} for path, text in files.items()]
    described = {
        "info/index.json": json.dumps(index),
        "info/paths.json": json.dumps({"paths": paths, "paths_version": 1}),
        "info/files": "".join(f"{path}\n" for path in files),
        "info/about.json": "{}",
    }
    (channel / "noarch").mkdir(parents=True, exist_ok=True)
    with tarfile.open(channel / "noarch" / f"{name}-{version}-0.tar.bz2", "w:bz2") as archive:
        for path, text in {**described, **files}.items():
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(text), 0o755
            archive.addfile(entry, io.BytesIO(text.encode()))


def write_channel(channel: Path, packages: dict[str, str], python: str, interpreter: str) -> None:
    write_package(channel, "python", python, files={"bin/python": f'#!/bin/sh\nexec {interpreter} "$@"\n'})
    for name, version in packages.items():
        write_package(channel, name, version, depends=[f"python =={python}"])
    (channel / "linux-64").mkdir(exist_ok=True)
    asyncio.run(index_fs(channel))


async def create(specs: Path, prefix: Path) -> None:
    """Solve a file of specs, each of which must be well formed, and install what was found."""
    wanted = [MatchSpec(spec, strict=True) for spec in yaml.safe_load(specs.read_text())["dependencies"]]
    records = await solve(
        sources=[Channel(Path(os.environ["CHANNEL"]).as_uri())],
        specs=wanted,
        platforms=["linux-64", "noarch"],
        virtual_packages=VirtualPackage.detect(),
        channel_priority=ChannelPriority.Strict,
    )
    await install(records=records, target_prefix=prefix, show_progress=False)


def answer(arguments: list[str]) -> str | None:
    """What conda would say.

    Raises:
        SystemExit: a command that Snakemake was not seen to use.
    """
    prefix = Path(os.environ["PREFIX"])
    match arguments:
        case ["--version"]:
            return "conda 24.7.1"
        case ["info", "--json"]:
            (prefix / "bin").mkdir(parents=True, exist_ok=True)
            (prefix / "bin/activate").write_text(ACTIVATE)
            return json.dumps({"conda_prefix": str(prefix), "platform": "linux-64"})
        case ["config", "--get", "channel_priority", "--json"]:
            return json.dumps({"get": {"channel_priority": "strict"}})
        case ["clean", *_]:
            return None
        case ["env", "create", "--quiet", "--no-default-packages", "--file", specs, "--prefix", target]:
            return asyncio.run(create(Path(specs), Path(target)))
        case ["write-channel", version, interpreter]:
            return write_channel(Path(os.environ["CHANNEL"]), json.load(sys.stdin), version, interpreter)
    raise SystemExit(f"conda {' '.join(arguments)} has no answer here")


if __name__ == "__main__":
    said = answer(sys.argv[1:])
    if said:
        sys.stdout.write(said + "\n")
        sys.stdout.flush()
    # py-rattler 0.28 crashes now and then when Python ends.
    os._exit(0)
