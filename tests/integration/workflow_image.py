"""The image of the workflow, built on Debian instead of the CUDA base as a folder that Apptainer runs.

Apptainer builds containers/saeflow.def. buildah builds containers/saeflow.Dockerfile with the /opt of the first result
mounted, so that the script that both call finds its packages there and the time is not spent twice. Needs root. What is
built stays in tests/.envs/containers until one of its inputs changes.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
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
    """The unpacked root file system, and the packages that Python finds in the image of the Dockerfile."""

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
        base = _base()
        files = sorted(path for name in ("containers", "envs") for path in (ROOT / name).glob("*") if path.is_file())
        inputs = [base.name.encode(), *(path.name.encode() + path.read_bytes() for path in files)]
        root = _fresh(f"image-{_digest(inputs)}")
        if not root.is_dir():
            links = _pip_settings().get("find-links", "")
            wheels = ["--bind", f"{links}:{links}:ro"] if Path(links).is_absolute() else []
            settings = {"BOOTSTRAP": "localimage", "BASE": base, "TORCH_BUILD": "cpu"}
            arguments = [word for name, value in settings.items() for word in ("--build-arg", f"{name}={value}")]
            recipe = ROOT / "containers" / "saeflow.def"
            _with_all_capabilities("apptainer", "build", "--sandbox", *wheels, *arguments, root, recipe)
        freeze = root.with_suffix(".freeze")
        if not freeze.is_file():
            freeze.write_text(_freeze_of_dockerfile(base, root))
    return WorkflowImage(root, freeze.read_text())


def _freeze_of_dockerfile(base: Path, root: Path) -> str:
    """Build the Dockerfile with a copy of the other image's /opt mounted; what its Python then finds."""
    with tempfile.TemporaryDirectory(dir=STORE) as folder:
        subprocess.run(["cp", "--archive", "--link", root / "opt", folder], check=True)
        buildah = partial(_buildah, Path(folder))
        container = buildah("from", "scratch")
        buildah("copy", "--quiet", container, base, "/")
        buildah("commit", "--quiet", "--rm", "--disable-compression", container, "localhost/debian")
        options = ["--isolation", "chroot", "--volume", f"{folder}/opt:/opt"]
        arguments = ["--build-arg", "BASE=localhost/debian", "--build-arg", "TORCH_BUILD=cpu"]
        recipe = ROOT / "containers" / "saeflow.Dockerfile"
        buildah("bud", "--quiet", *options, *arguments, "-f", recipe, "-t", "localhost/saeflow", ROOT)
        container = buildah("from", "localhost/saeflow")
        # By a shell of its own: buildah looks for a program before it mounts the folder.
        return buildah("run", *options, container, "--", "sh", "-c", "python -m uv pip freeze")


def _base() -> Path:
    """A root file system of Debian with Python, pip's settings and the certificates of this machine; made once."""
    settings = {"cert": str(CERTIFICATES), **_pip_settings()}
    pip = "[global]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items())
    inputs = [SUITE.encode(), PACKAGES.encode(), pip.encode(), CERTIFICATES.read_bytes()]
    root = _fresh(f"debian-{_digest(inputs)}")
    if root.is_dir():
        return root
    with tempfile.TemporaryDirectory(dir=STORE) as folder:
        made = Path(folder) / "root"
        make = ["mmdebstrap", "--quiet", "--variant=minbase", "--dpkgopt=force-unsafe-io", f"--include={PACKAGES}"]
        run = subprocess.run([*make, SUITE, made], capture_output=True, text=True)
        if run.returncode:
            raise NoBaseError(run.stderr.strip()[-500:])
        # Device nodes cannot be copied in a user namespace; whoever runs an image brings his own.
        shutil.rmtree(made / "dev")
        (made / "dev").mkdir()
        shutil.copyfile(CERTIFICATES, made / CERTIFICATES.relative_to("/"))
        (made / "etc/pip.conf").write_text(pip)
        (made / "etc/uv").mkdir()
        (made / "etc/uv/uv.toml").write_text("system-certs = true\n")
        links = settings.get("find-links", "")
        if Path(links).is_absolute():
            (made / links.lstrip("/")).mkdir(parents=True, exist_ok=True)
        made.rename(root)
    return root


def _fresh(name: str) -> Path:
    """The folder of that name, made or yet to be made; older ones of its kind are removed."""
    for old in STORE.glob(f"{name.partition('-')[0]}-*"):
        if old.stem != name:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    return STORE / name


def _pip_settings() -> dict[str, str]:
    """Where pip finds packages on this machine."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    pairs = (line.partition("=") for line in listed.stdout.splitlines())
    found = {name.removeprefix("global.").removeprefix(":env:."): value.strip("'") for name, _, value in pairs}
    return {name: found[name] for name in ("find-links", "index-url") if name in found}


def _digest(parts: list[bytes]) -> str:
    return hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:16]


def _buildah(storage: Path, *arguments: object) -> str:
    """Run buildah on storage of its own; its standard output."""
    settings = storage / "containers.conf"
    settings.write_text(CONTAINERS_CONF)
    command = ["buildah", "--root", storage / "root", "--runroot", storage / "run", *arguments]
    done = subprocess.run(command, env=os.environ | {"CONTAINERS_CONF": settings}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"buildah {arguments[0]} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stdout.strip()


def _with_all_capabilities(*command: object) -> None:
    """Run a command as root of a user namespace, where every capability exists.

    Apptainer wants them all to run the commands of a definition; root of a virtual machine may lack some.
    """
    # The files that a definition takes are named from the project's root.
    waiting = ["unshare", "--user", "--mount", "sh", "-c", 'read -r _; exec "$@"', "sh", *map(str, command)]
    process = subprocess.Popen(
        waiting, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    while os.readlink(f"/proc/{process.pid}/ns/user") == os.readlink("/proc/self/ns/user"):
        time.sleep(0.02)
    for name in ("uid_map", "gid_map"):
        Path(f"/proc/{process.pid}/{name}").write_text("0 0 65536\n")
    said, _ = process.communicate("go\n")
    if process.returncode:
        raise RuntimeError(f"{command[0]} failed:\n{said[-4000:]}")
