# Shared by the files beside this one: the typed study, the names of its parts, the library files of each script.
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

sys.path.insert(0, str(Path(workflow.basedir) / "scripts"))
from saeflow import config as saeflow_config
from saeflow.datasets import files
from saeflow.library import modules_of

try:
    STUDY = saeflow_config.parse(config)
    DATASET = STUDY.dataset.name
    # Files that the study names, else the folder that they are downloaded to; an embedded set has none.
    if DATASET == "digits":
        RAW = []
    elif STUDY.dataset.data_dir:
        RAW = list(map(str, files.find(DATASET, STUDY.dataset.data_dir)))
    else:
        RAW = ["data/{dataset}"]
except (saeflow_config.ConfigError, files.DatasetError) as error:
    raise WorkflowError(f"The study cannot be run as it is written:\n{error}")

ARCHITECTURES = STUDY.classifiers.architectures
ROLES = tuple(STUDY.classifiers.roles)
CAPTURED = STUDY.captured_roles
SEEDS = STUDY.classifiers.seeds
HOOKS = STUDY.activations.hook_points
SPLITS = ("train", "test")
VARIANTS = tuple(STUDY.saes.variants)
SAE_SEEDS = STUDY.saes.seeds
IMAGES = f"<results>/datasets/{DATASET}.npz"
WEIGHTS = f"<results>/models/{DATASET}/{{architecture}}/{{role}}.safetensors"
STORE = "<results>/activations/{architecture}-{role}-s{seed}/{hook}/{split}"
SAE = "<results>/saes/{architecture}-{role}-s{seed}/{hook}/{variant}-s{sae_seed}"
SAE_GROUP = "{architecture}-{role}/{hook}"
FEATURES = "<results>/features/{architecture}-{role}-s{seed}/{hook}/{variant}-s{sae_seed}"
INJECTION = "<results>/injection"
# Filled by injection.smk, which is part of studies with that section only.
INJECTION_RESULTS, INJECTION_REPORTED = [], []
GPU = int(STUDY.compute.device == "cuda")


wildcard_constraints:
    dataset="[a-z0-9_]+",
    architecture="[A-Za-z0-9]+",
    role="[a-z0-9_]+",
    seed=r"\d+",
    sae_seed=r"\d+",
    hook=r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*",
    split="train|test",
    variant="[a-z0-9_]+",


def library(script):
    """Library modules that a script imports, directly or not, and the templates and data that go by a module's name: an
    edit of one reruns exactly what uses it."""
    modules = modules_of(Path(workflow.basedir) / "scripts" / f"{script}.py")
    beside = (file for module in modules for file in Path(module).parent.glob(f"{Path(module).stem}.*"))
    return modules + sorted(str(file) for file in beside if file.suffix in (".j2", ".yaml"))


def method_library(wildcards):
    """The file of an injection method and what it imports: its script finds it by name, so that no import tells."""
    folder = Path(workflow.basedir) / "scripts" / "saeflow" / "injection" / "methods"
    file = folder / f"{saeflow_config.METHODS[wildcards.method]}.py"
    return [str(file), *modules_of(file)]


def settings(*sections, **more):
    """The one `cfg` param: wildcards, root seed, device, whole sections of the study, and what else is named.

    One dict of builtins, because Snakemake compares params as a set of values without their names. A section hides a
    wildcard of the same name (`dataset`, `seed`).
    """
    study = STUDY.model_dump(mode="json")
    fixed = {"seed": STUDY.seed, "device": STUDY.compute.device} | {name: study[name] for name in sections} | more
    return lambda wildcards: {name: str(value) for name, value in wildcards.items()} | fixed


def memory(base_mb):
    """Megabytes by attempt: the measured peak of the default study plus a half, doubled at each retry."""
    return lambda wildcards, attempt: base_mb * 2 ** (attempt - 1)


def each(pattern, **values):
    """Paths of a pattern over values of the study; wildcards not named stay wildcards."""
    return expand(pattern, allow_missing=True, **values)


def outputs_of(rule, **values):
    """All files that a rule makes in this study."""
    return each([str(path) for path in rule.output], **values)


def stores(split):
    """Manifests of one split, in the order of the seeds; each carries the digests of its chunks."""
    return each(f"{STORE.replace('{split}', split)}/manifest.json", seed=SEEDS)


def chunks(split):
    """The folders that the manifests speak of: needed, but compared by the manifest alone."""
    return [ancient(part) for part in each(f"{STORE.replace('{split}', split)}/part-0", seed=SEEDS)]


def saes_of(wildcards):
    """The concept SAEs, for a method that reads them."""
    return f"{INJECTION}/concept_saes.safetensors" if wildcards.method in saeflow_config.SAE_METHODS else []
