"""The library files of a script are the ones that it imports."""

import subprocess
import sys
from pathlib import Path

import pytest

from saeflow import library

SCRIPTS = Path(library.__file__).parents[1]


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.py")), ids=lambda path: path.stem)
def test_every_module_that_a_script_loads_is_among_its_library_files(script):
    probe = (
        "import sys, importlib.util as u; s = u.spec_from_file_location('probe', sys.argv[1]); "
        "m = u.module_from_spec(s); s.loader.exec_module(m); assert 'torchvision' not in sys.modules; "
        "print(*[v.__file__ for n, v in sys.modules.items() if n.split('.')[0] == 'saeflow'])"
    )
    run = subprocess.run([sys.executable, "-c", probe, script], cwd=SCRIPTS, capture_output=True, text=True, check=True)
    assert set(run.stdout.split()) <= set(library.modules_of(script))


def test_imports_run_one_way_down_the_layers():
    layers = {
        **dict.fromkeys(
            (
                "advice",
                "comparison",
                "config",
                "config_language",
                "endpoints",
                "extras",
                "gpu",
                "library",
                "record",
                "redaction",
                "registry",
            ),
            0,
        ),
        **dict.fromkeys(("reproduce", "rule", "strict_yaml", "terminal", "tracking"), 0),
        **dict.fromkeys(("datasets", "models", "activations"), 1),
        "sae": 2,
        **dict.fromkeys(("features", "injection", "geometry", "inversion"), 3),
        **dict.fromkeys(("publish", "catalog"), 4),
        **dict.fromkeys(("command_line", "plan", "preflight", "__main__"), 5),
    }
    for module in sorted(library.PACKAGE.rglob("*.py")):
        parts = module.relative_to(library.PACKAGE).with_suffix("").parts
        if parts == ("__init__",):
            continue
        for imported in library._imports(module):
            target = imported.relative_to(library.PACKAGE).with_suffix("").parts
            if target == ("__init__",) or target[0] == parts[0]:
                continue
            below = layers[target[0]] < layers[parts[0]]
            # The chapters know nothing of one another; data and models, beside each other, may.
            assert below or (layers[target[0]] == layers[parts[0]] != 3), f"{parts} imports {target}"
