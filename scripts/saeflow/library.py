"""Which library modules a script depends on, found in the source without importing it.

Snakemake tracks the content of a rule's inputs, not what its script imports; a rule that takes these files as input is
rerun by an edit of any of them and by nothing else.
"""

import ast
from collections.abc import Collection, Iterator, Sequence
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent


def modules_of(script: Path, kinds: Collection[str] = ()) -> list[str]:
    """Files of the package that a script imports, directly or through other modules, sorted.

    Arguments:
        kinds: names of modules; of a registry's package that has some of them, only these count.
    """
    found: set[Path] = set()
    waiting = list(_imports(script, frozenset(kinds)))
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting += _imports(module, frozenset(kinds))
    return sorted(str(path) for path in found)


@cache
def _imports(source: Path, kinds: frozenset[str] = frozenset()) -> tuple[Path, ...]:
    """Files of the package that one file names in its import statements, wherever they stand, and those of the packages
    that its registries read."""
    tree = ast.parse(source.read_text(encoding="utf-8"))
    found = [path for node in _statements(tree.body) for path in _files(node, source)]
    found += [path for node in tree.body for path in _kinds(node, kinds)]
    return tuple(dict.fromkeys(found))


def _kinds(node: ast.AST, kinds: frozenset[str]) -> Iterator[Path]:
    """Files of the package that a `Registry("saeflow.…")` reads, where a statement makes one."""
    call = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
    if isinstance(call, ast.Call) and isinstance(call.func, ast.Name | ast.Subscript | ast.Attribute) and call.args:
        name = call.func.value if isinstance(call.func, ast.Subscript) else call.func
        package = call.args[0]
        if isinstance(name, ast.Name) and name.id == "Registry" and isinstance(package, ast.Constant):
            yield from _files_of(package.value)
            modules = sorted(PACKAGE.joinpath(*package.value.split(".")[1:]).glob("*.py"))
            yield from [module for module in modules if module.stem in kinds] or modules


def _statements(nodes: Sequence[ast.AST]) -> Iterator[ast.AST]:
    """Statements, and those within them; expressions are passed over, which hold none."""
    for node in nodes:
        yield node
        for block in ("body", "orelse", "finalbody", "handlers", "cases"):
            yield from _statements(getattr(node, block, ()))


def _files(node: ast.AST, source: Path) -> Iterator[Path]:
    """Files that one import statement runs: the module and the packages above it."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        base = _package_of(source, node.level) + (node.module.split(".") if node.module else [])
        names = [".".join(base), *(".".join([*base, alias.name]) for alias in node.names)]
    else:
        return
    for name in names:
        if name.partition(".")[0] == PACKAGE.name:
            yield from _files_of(name)


@cache
def _files_of(name: str) -> tuple[Path, ...]:
    """Files of a dotted name of the package, as far as it leads to modules."""
    parts = name.split(".")
    found = [PACKAGE / "__init__.py"]
    for depth in range(2, len(parts) + 1):
        path = PACKAGE.joinpath(*parts[1:depth])
        candidates = (path.with_suffix(".py"), path / "__init__.py")
        found += (candidate for candidate in candidates if candidate.is_file())
    return tuple(found)


def _package_of(source: Path, level: int) -> list[str]:
    """Dotted parts that a relative import of this level starts from; none for an absolute import."""
    if level == 0:
        return []
    return [PACKAGE.name, *source.resolve().parent.relative_to(PACKAGE).parts][: -(level - 1) or None]
