"""What a study's crate holds and where: the workflow at its root, what the study shows below `study/`."""

from pathlib import Path

METADATA = "ro-crate-metadata.json"
STUDY = "study"
STUDY_FILE = f"{STUDY}/study.yaml"
MANIFEST = f"{STUDY}/MANIFEST.sha256"
INPUTS = f"{STUDY}/INPUTS.sha256"
BESIDE = (STUDY_FILE, MANIFEST, INPUTS)
"""What lies beside the results, and is in no manifest."""
LONGEST_NAME = 1024

_PARTS = (
    *("Snakefile", "Makefile", "README.md", "LICENSE", "CITATION.cff", "pyproject.toml"),
    *("config", "containers", "envs", "scripts", "workflow"),
)
# Images, caches and an editor's leavings lie between the sources.
_SOURCES = {
    *(".Dockerfile", ".def", ".in", ".lock", ".sh", ".yaml", ".json", ".py", ".smk"),
    *(".css", ".j2", ".js", ".mako", ".md", ".rst", ".txt"),
}


def project_files(root: Path) -> list[str]:
    """Files of the workflow that a crate carries, relative to the project's root, sorted.  A crate's root is one too.

    Raises:
        FileNotFoundError: the folder lacks a part of a project.
    """
    found = set()
    for part in _PARTS:
        path = root / part
        if not path.exists():
            raise FileNotFoundError(f"{path}: not there, but a crate carries the whole workflow")
        found |= {file for file in path.rglob("*") if file.suffix in _SOURCES} if path.is_dir() else {path}
    return sorted(file.relative_to(root).as_posix() for file in found)


def changes_results(name: str) -> bool:
    """Whether a file of the project can change what another study shows: prose and other studies cannot."""
    return not name.endswith((".md", ".cff")) and (
        not name.startswith("config/") or name.startswith("config/concepts/")
    )


# Large, or somebody else's text.
_BY_DIGEST = ("activations/", "language/activations/", "language/texts/", "language/tokens/")


def is_shown(name: str) -> bool:
    """Whether a file of the study's manifest is in the crate; activations, texts, weights and arrays are there by
    digest."""
    return not name.startswith(_BY_DIGEST) and not name.endswith((".safetensors", ".npz"))
