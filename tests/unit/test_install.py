"""What installs: hashed wheels, what hashed wheels build, and torchvision beside either build of torch."""

import hashlib
import io
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from uv import find_uv_bin

ROOT = Path(__file__).parents[2]
LOCKS = [*ROOT.glob("envs/*.lock"), *ROOT.glob("tests/envs/*.lock"), *ROOT.glob("benchmarks/peers/*.lock")]
WHEEL = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
BACKEND = """
import zipfile
def build_wheel(folder, settings=None, metadata=None):
    with zipfile.ZipFile(f"{{folder}}/toy-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("toy.py", "BUILT_BY = '{version}'")
        wheel.writestr("toy-1.0.dist-info/METADATA", "Metadata-Version: 2.1\\nName: toy\\nVersion: 1.0\\n")
        wheel.writestr("toy-1.0.dist-info/WHEEL", {wheel!r})
        wheel.writestr("toy-1.0.dist-info/RECORD", "")
    return "toy-1.0-py3-none-any.whl"
"""


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_lock_takes_wheels_alone_but_for_what_pinned_wheels_build(lock):
    first, *more = re.findall("^--.*", lock.read_text(), re.MULTILINE)
    assert first == "--only-binary :all:"
    assert all(line.startswith("--no-binary ") for line in more)
    if lock.with_suffix(".in").exists():
        assert [first, *more] == re.findall("^--.*", lock.with_suffix(".in").read_text(), re.MULTILINE)


def test_what_builds_is_installed_from_a_lock_first_and_in_the_version_of_the_environment():
    pins = (ROOT / "envs/build.lock").read_text().partition("setuptools")
    assert "setuptools" + pins[2] in (ROOT / "envs/requirements.lock").read_text()
    assert re.findall("^[a-z].*==", "".join(pins), re.MULTILINE) == ["setuptools=="]
    script = (ROOT / "envs/install.sh").read_text()
    assert script.index("build.lock") < script.index("requirements.lock")
    # Every command of the script that installs with uv.
    assert re.findall(r"uv pip install (.*)", script) == ['--require-hashes --no-build-isolation "$@"; }']


@pytest.fixture
def index(tmp_path):
    """A folder with a package as source, and two versions of what builds it."""
    folder = tmp_path / "index"
    folder.mkdir()
    for version in ("1.0", "2.0"):
        with zipfile.ZipFile(folder / f"toybackend-{version}-py3-none-any.whl", "w") as wheel:
            info = f"toybackend-{version}.dist-info"
            wheel.writestr("toybackend.py", BACKEND.format(version=version, wheel=WHEEL))
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: toybackend\nVersion: {version}\n")
            wheel.writestr(f"{info}/WHEEL", WHEEL)
            wheel.writestr(f"{info}/RECORD", "")
    project = '[build-system]\nrequires = ["toybackend"]\nbuild-backend = "toybackend"\n'
    project += '[project]\nname = "toy"\nversion = "1.0"\n'
    with tarfile.open(folder / "toy-1.0.tar.gz", "w:gz") as archive:
        for name, content in (("pyproject.toml", project), ("PKG-INFO", "Name: toy\nVersion: 1.0\n")):
            entry = tarfile.TarInfo(f"toy-1.0/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content.encode()))
    return folder


def pin(file, digest=None):
    name, version = re.match(r"(\w+)-(\d\.\d)", file.name).groups()
    return f"{name}=={version} --hash=sha256:{digest or hashlib.sha256(file.read_bytes()).hexdigest()}\n"


def installed(tmp_path, index, built, builders):
    """install.sh with other locks, in an environment that has uv; the process, and what it installed."""
    envs, venv = tmp_path / "envs", tmp_path / "venv"
    envs.mkdir()
    for file in (ROOT / "envs").iterdir():
        if file.suffix not in (".lock", ".yaml"):
            (envs / file.name).symlink_to(file)
    wheels = "--only-binary :all:\n"
    (envs / "requirements.lock").write_text(wheels + built + pin(index / "toy-1.0.tar.gz"))
    (envs / "torch-cpu.lock").write_text(wheels)
    (envs / "build.lock").write_text(wheels + builders)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    (packages,) = venv.glob("lib/python*/site-packages")
    (packages / "uv").symlink_to(Path(sys.modules["uv"].__file__).parent)
    (venv / "bin/uv").symlink_to(find_uv_bin())
    mine = {"TORCH_BUILD": "cpu", "UV_FIND_LINKS": str(index), "UV_OFFLINE": "1", "UV_NO_CACHE": "1"}
    run = subprocess.run(["sh", envs / "install.sh", venv], env=os.environ | mine, capture_output=True, text=True)
    toy = packages / "toy.py"
    return run, toy.read_text() if toy.exists() else None


def test_a_source_archive_is_built_by_the_pinned_wheel_though_a_newer_one_is_offered(tmp_path, index):
    builder = pin(index / "toybackend-1.0-py3-none-any.whl")
    run, toy = installed(tmp_path, index, "--no-binary toy\n", builder)
    assert run.returncode == 0, run.stderr
    assert toy == "BUILT_BY = '1.0'"


@pytest.mark.parametrize(
    ("built", "builder", "said"),
    [
        ("", "pinned", "building from source is disabled"),
        ("--no-binary toy\n", "absent", "toybackend"),
        ("--no-binary toy\n", "another", "Hash mismatch for `toybackend==1.0`"),
    ],
)
def test_a_build_that_is_not_pinned_is_refused(tmp_path, index, built, builder, said):
    wheel = index / "toybackend-1.0-py3-none-any.whl"
    builders = {"pinned": pin(wheel), "absent": "", "another": pin(wheel, "0" * 64)}
    run, toy = installed(tmp_path, index, built, builders[builder])
    assert run.returncode != 0
    assert said in run.stderr
    assert toy is None


# As its compiled part does when it is loaded: every operator gets its schema. Or as where CUDA's libraries are missing.
LOADING = """
import sys, torch
if "no hook" in sys.argv:
    sys.meta_path.remove(sys.modules["torchvision_schemas"].SchemasFirst)
from importlib.util import find_spec
source = open(find_spec("torchvision").submodule_search_locations[0] + "/_meta_registrations.py").read()
library = torch.library.Library("torchvision", "FRAGMENT")

def load(path):
    if not path.endswith("_C.so"):
        return
    if "missing" in sys.argv:
        raise OSError("libcudart.so.13: cannot open shared object file")
    import re
    for name in re.findall(r'(?:register_meta\\("|torchvision::)(\\w+)"', source):
        library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("_cuda_version() -> int")
    library.impl("_cuda_version", lambda: -1, "CompositeExplicitAutograd")

torch.ops.load_library = load
"""
IMPORTING = """
if "missing" in sys.argv:
    from transformers import LlamaForCausalLM
import torchvision
from torchvision.models import resnet18
from torchvision.transforms import v2
assert resnet18()(v2.Normalize([0], [1])(torch.zeros(1, 3, 64, 64))).shape == (1, 1000)
assert torchvision.datasets.MNIST
print(torchvision.extension._has_ops(), torch.ops.torchvision.nms.default._schema)
torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
"""
NMS = "torchvision::nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def imported(*arguments):
    probe = [sys.executable, "-c", LOADING + IMPORTING, *arguments]
    return subprocess.run(probe, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})


def test_torchvision_loads_with_its_compiled_part_and_without_it_says_so_where_it_is_needed():
    there, missing = imported("there"), imported("missing")
    assert there.stdout.strip() == f"True {NMS}", there.stderr
    assert missing.stdout.strip() == f"False {NMS}", missing.stderr
    assert "Couldn't load custom C++ ops" in missing.stderr
    assert "Couldn't load custom C++ ops" not in there.stderr


def test_without_the_schemas_torchvision_does_not_load_where_its_compiled_part_is_missing():
    probe = [sys.executable, "-c", f"{LOADING}import torchvision", "missing", "no hook"]
    assert "operator torchvision::nms does not exist" in subprocess.run(probe, capture_output=True, text=True).stderr


def test_python_starts_without_torch_where_the_schemas_wait_for_torchvision():
    probe = "import sys; print('torchvision_schemas' in sys.modules, 'torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert run.stdout.strip() == "True False"
