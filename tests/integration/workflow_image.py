"""The image of the workflow as an unpacked folder that Apptainer runs, built on Debian instead of the CUDA base.

buildah builds containers/saeflow.Dockerfile; Apptainer builds containers/saeflow.def on top of the result, where the
script that both call finds its packages there already. Needs root. What is built stays in tests/.envs/containers until
one of its inputs changes.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
STORE = ROOT / "tests" / ".envs" / "containers"
PROGRAMS = ("buildah", "mmdebstrap", "apptainer", "unshare")
SUITE = "bookworm"  # its Python is the one that the CPU build of torch is made for
PACKAGES = "ca-certificates,python3-venv"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
# For machines where neither cgroups nor limits can be set.
CONTAINERS_CONF = """\
[containers]
netns = "host"
default_ulimits = []
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
"""


class NoBaseError(RuntimeError):
    """A Debian root file system cannot be made here; carries the last words of the program that makes it."""


@dataclass(frozen=True)
class WorkflowImage:
    """An image of both recipes: the unpacked root file system, and the packages that the OCI image lists."""

    root: Path
    freeze: str

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in it, at home in /tmp."""
        return subprocess.run(
            ["apptainer", "--silent", "exec", "--home", "/tmp", self.root, *command], capture_output=True, text=True
        )


def build() -> WorkflowImage:
    """The image of the recipes and locks as they are. Safe to call from several processes at once.

    Raises:
        NoBaseError: without its base nothing can be built.
        RuntimeError: a recipe failed; the message ends with what it said.
    """
    STORE.mkdir(parents=True, exist_ok=True)
    with open(STORE / "busy", "w") as busy:
        fcntl.flock(busy, fcntl.LOCK_EX)
        files = sorted(path for name in ("containers", "envs") for path in (ROOT / name).glob("*") if path.is_file())
        inputs = [Path(__file__).read_bytes(), *(path.name.encode() + path.read_bytes() for path in files)]
        folder = STORE / f"image-{_digest(inputs)}"
        if not (folder / "freeze.txt").is_file():
            for old in STORE.glob("image-*"):
                shutil.rmtree(old)
            folder.mkdir()
            freeze = _build_in(folder)
            (folder / "freeze.txt").write_text(freeze)
    return WorkflowImage(folder / "root", (folder / "freeze.txt").read_text())


def _build_in(folder: Path) -> str:
    """Build both recipes; the second one's result is `folder`/root, what the first one has installed is returned."""
    base = _base()
    links = _pip_settings().get("find-links")
    wheels = ["--volume", f"{links}:{links}:ro"] if links and Path(links).is_dir() else []
    recipe = [
        "-f",
        ROOT / "containers/saeflow.Dockerfile",
        "--build-arg",
        f"BASE={base}",
        "--build-arg",
        "TORCH_BUILD=cpu",
    ]
    _buildah("bud", "--quiet", "--isolation", "chroot", *recipe, *wheels, "-t", "localhost/saeflow", ROOT)
    container = _buildah("from", "localhost/saeflow")
    try:
        freeze = _buildah("run", "--isolation", "chroot", container, "--", "python", "-m", "uv", "pip", "freeze")
        settings = {"BOOTSTRAP": "localimage", "BASE": _buildah("mount", container), "TORCH_BUILD": "cpu"}
        arguments = [word for name, value in settings.items() for word in ("--build-arg", f"{name}={value}")]
        recipe = ROOT / "containers" / "saeflow.def"
        _with_all_capabilities("apptainer", "build", "--sandbox", *arguments, folder / "root", recipe)
    finally:
        _buildah("rm", container)
        _buildah("rmi", "localhost/saeflow")
    return freeze


def _base() -> str:
    """Name of an image of Debian with Python, pip's settings and the certificates of this machine; made once."""
    settings = {"cert": str(CERTIFICATES), **_pip_settings()}
    pip = "[global]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items())
    digest = _digest([SUITE.encode(), PACKAGES.encode(), pip.encode(), CERTIFICATES.read_bytes()])
    name = f"localhost/debian:{digest}"
    if _buildah("images", "--quiet", "--filter", f"reference={name}"):
        return name
    container = _buildah("from", "scratch")
    root = Path(_buildah("mount", container))
    make = ["mmdebstrap", "--quiet", "--variant=minbase", "--dpkgopt=force-unsafe-io", f"--include={PACKAGES}"]
    made = subprocess.run([*make, SUITE, root], capture_output=True, text=True)
    if made.returncode:
        _buildah("rm", container)
        raise NoBaseError(made.stderr.strip()[-500:])
    shutil.copyfile(CERTIFICATES, root / CERTIFICATES.relative_to("/"))
    (root / "etc/pip.conf").write_text(pip)
    (root / "etc/uv").mkdir()
    (root / "etc/uv/uv.toml").write_text("system-certs = true\n")
    _buildah("commit", "--quiet", "--rm", container, name)
    return name


def _pip_settings() -> dict[str, str]:
    """Where pip finds packages on this machine."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    pairs = (line.partition("=") for line in listed.stdout.splitlines())
    found = {name.removeprefix("global.").removeprefix(":env:."): value.strip("'") for name, _, value in pairs}
    return {name: found[name] for name in ("find-links", "index-url") if name in found}


def _digest(parts: list[bytes]) -> str:
    return hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:16]


def _buildah(*arguments: object) -> str:
    """Run buildah on storage of its own; its standard output."""
    settings = STORE / "containers.conf"
    settings.write_text(CONTAINERS_CONF)
    command = ["buildah", "--root", STORE / "storage", "--runroot", STORE / "run", *arguments]
    done = subprocess.run(command, env={**os.environ, "CONTAINERS_CONF": str(settings)}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"buildah {arguments[0]} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stdout.strip()


def _with_all_capabilities(*command: object) -> None:
    """Run a command as root of a user namespace, where every capability exists.

    Apptainer wants them all to run the commands of a definition; root of a virtual machine may lack some.
    """
    waiting = ["unshare", "--user", "--mount", "sh", "-c", 'read -r _; exec "$@"', "sh", *map(str, command)]
    process = subprocess.Popen(
        waiting, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    while os.readlink(f"/proc/{process.pid}/ns/user") == os.readlink("/proc/self/ns/user"):
        time.sleep(0.02)
    for name in ("uid_map", "gid_map"):
        Path(f"/proc/{process.pid}/{name}").write_text("0 0 65536\n")
    said, _ = process.communicate("go\n")
    if process.returncode:
        raise RuntimeError(f"{command[0]} failed:\n{said[-4000:]}")
