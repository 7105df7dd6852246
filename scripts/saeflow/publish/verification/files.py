"""Checks of the package as files: the manifest, digests, and what must not be in it."""

import re

from saeflow.publish.package import CARD, FORMAT, MANIFEST
from saeflow.publish.verification.checks import check
from saeflow.publish.verification.opened import Package
from saeflow.redaction import has_password
from saeflow.reproduce import files_below, sha256_file

_PATHS = re.compile(r"(?<![\w./:])(/(home|Users|root|tmp|mnt|scratch|var)/[^\s\"']+|[A-Z]:\\\\[^\s\"']+)")
_SECRETS = re.compile(r"\b(hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{20,})")
_PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt", ".joblib")
_PLAIN = {"dictionary_learning/ae.pt"}


@check("package.json is there and says what the package is")
def manifest_is_readable(package: Package) -> str | None:
    _ = package.manifest
    return None


@check("the manifest is of a format that this version reads")
def manifest_format_is_known(package: Package) -> str | None:
    found = package.manifest["format"]
    return None if found == FORMAT else f"format {found}, expected {FORMAT}"


@check("every file that the manifest lists is there")
def listed_files_are_there(package: Package) -> str | None:
    missing = [name for name in package.manifest["files"] if not (package.folder / name).is_file()]
    return f"missing: {', '.join(missing[:5])}" if missing else None


@check("every file that is there is listed")
def files_are_listed(package: Package) -> str | None:
    there = {path.relative_to(package.folder).as_posix() for path in files_below(package.folder)}
    extra = sorted(there - set(package.manifest["files"]) - {MANIFEST})
    return f"not listed: {', '.join(extra[:5])}" if extra else None


@check("every file has the sha256 that the manifest lists")
def digests_are_right(package: Package) -> str | None:
    there = {name: digest for name, digest in package.manifest["files"].items() if (package.folder / name).is_file()}
    wrong = [name for name, digest in there.items() if sha256_file(package.folder / name) != digest]
    return f"changed: {', '.join(wrong[:5])}" if wrong else None


@check("no file lies outside, behind a link")
def there_are_no_links(package: Package) -> str | None:
    links = [p.relative_to(package.folder).as_posix() for p in package.folder.rglob("*") if p.is_symlink()]
    return f"links: {', '.join(links[:5])}" if links else None


@check("nothing is a pickle but the tensors that dictionary_learning loads")
def there_are_no_foreign_pickles(package: Package) -> str | None:
    names = (p.relative_to(package.folder).as_posix() for p in package.folder.rglob("*") if p.suffix in _PICKLES)
    foreign = sorted(set(names) - _PLAIN)
    return f"pickles: {', '.join(foreign)}" if foreign else None


@check("ae.pt holds plain tensors: loading it runs no code")
def the_pickle_is_of_plain_tensors(package: Package) -> str | None:
    _ = package.dictionary_tensors
    return None


@check("no text names a folder of the machine that made it")
def no_paths_of_a_machine(package: Package) -> str | None:
    found = ((name, _PATHS.search(text)) for name, text in package.text_files())
    return next((f"{name}: {match[1]}" for name, match in found if match), None)


@check("no text holds a key, a token or a password")
def no_secrets(package: Package) -> str | None:
    found = (name for name, text in package.text_files() if _SECRETS.search(text) or has_password(text))
    return next((f"{name} holds what looks like a secret" for name in found), None)


@check("the model card names model, hook point and SAE")
def card_names_the_sae(package: Package) -> str | None:
    path = package.folder / CARD
    if not path.is_file():
        return f"{CARD} is not there"
    text = path.read_text(encoding="utf-8")
    absent = [package.manifest[key] for key in ("model", "hook_point", "variant") if package.manifest[key] not in text]
    return f"{CARD} does not name {', '.join(absent)}" if absent else None
