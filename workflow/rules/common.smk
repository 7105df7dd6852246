# Shared by the files beside this one: the typed study, the names of its parts, the library files of each script.
import os
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

SCRIPTS = str(Path(workflow.basedir) / "scripts")
sys.path.insert(0, SCRIPTS)
from saeflow import endpoints, preflight
from saeflow.config import reading
from saeflow.config.injection import METHODS, SAE_METHODS
from saeflow.config.sections import ConfigError
from saeflow.datasets import files
from saeflow.library import modules_of
from saeflow.reproduce import ENVIRONMENT
from saeflow.sae.sharing import jobs

# For every job's process, before it starts: this file is read by whatever Snakemake starts it, on a cluster's nodes too.
# Its library is the one beside this file, also where an environment has another checkout's.
FOUND = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path not in ("", SCRIPTS)]
os.environ.update(ENVIRONMENT, PYTHONPATH=os.pathsep.join([SCRIPTS, *FOUND]))


def settings_given():
    """What the study's files and --config say, read again: of two equal keys Snakemake's own reader keeps the last."""
    if workflow.modifier.skip_configfile:  # part of another workflow, which hands over what it has read
        return config
    return reading.read(*workflow.configfiles, over=workflow.config_settings.config)


try:
    STUDY = reading.parse(settings_given())
    # The process of a job reads this file again, when all was looked at.
    if workflow.is_main_process:
        reading.check_command_line(sys.argv[1:])
        for note in preflight.look(STUDY, Path(workflow.basedir), workflow.deployment_settings.deployment_method):
            logger.info(note)
except ConfigError as error:
    raise WorkflowError(f"The study cannot be run as it is written:\n{error}")

DATASET = STUDY.dataset.name
# Files that the study names, else the folder that they are downloaded to; an embedded set has none.
RAW = ["data/{dataset}"]
if DATASET == "digits":
    RAW = []
elif STUDY.dataset.data_dir:
    RAW = list(map(str, files.find(DATASET, STUDY.dataset.data_dir)))
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
SAE_CONFIG, SAE_WEIGHTS = f"{SAE}/cfg.json", f"{SAE}/sae_weights.safetensors"
SAE_CURVES = f"{SAE}.curves.parquet"
FEATURES = "<results>/features/{architecture}-{role}-s{seed}/{hook}/{variant}-s{sae_seed}"
INJECTION = "<results>/injection"
# Filled by injection.smk, which is part of studies with that section only.
INJECTION_RESULTS, INJECTION_REPORTED = [], []
# Filled by language.smk, geometry.smk and inversion.smk.
LANGUAGE_RESULTS, LANGUAGE_REPORTED, TEXT_FEATURES_SHOWN = [], [], {}
GEOMETRY_RESULTS, GEOMETRY_SHOWN, INVERSION_SHOWN = [], [], []
# Where the files of a language study lie, and how many jobs make them: no part of what it shows.
UNSEEN_OF_LANGUAGE = {}
if STUDY.language:
    UNSEEN_OF_LANGUAGE["language"] = {
        "text": {"folder", "hierarchy"},
        "models": {name: {"folder"} for name in STUDY.language.models},
        "concepts": {"files"},
        "activations": {"shards"},
        "saes": {"shards"},
        # How packages are called, which are built on demand.
        "publish": True,
    }
# Where its own hierarchy lies is none either.
if STUDY.geometry:
    UNSEEN_OF_LANGUAGE["geometry"] = {"concepts": {"file"}}
GPU = int(STUDY.compute.device == "cuda")
# Parts of each store, one per capture job; the SAEs of each training job.
PARTS = range(STUDY.activations.shards)
SAE_JOBS = jobs(STUDY.saes, len(SEEDS), STUDY.compute.device)
# Where activations are captured, and where SAEs are trained.
CAPTURED_AT = dict(architecture=ARCHITECTURES, role=CAPTURED)
TRAINED_AT = CAPTURED_AT | dict(hook=HOOKS)


wildcard_constraints:
    dataset="[a-z0-9_]+",
    architecture="[A-Za-z0-9]+",
    role="[a-z0-9_]+",
    seed=r"\d+",
    sae_seed=r"\d+",
    hook=r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*",
    split="train|test",
    shard=r"\d+",
    variant="[a-z0-9_]+",


def check_endpoint():
    """Refuse a study that asks an endpoint which the environment does not allow."""
    endpoint = STUDY.inversion and STUDY.inversion.pipeline.explain and STUDY.inversion.explanation.endpoint
    if endpoint:
        try:
            endpoints.authorize(endpoint.url)
        except endpoints.EndpointError as error:
            raise WorkflowError(f"The study cannot be run as it is written:\n{error}")


def library(script):
    """Library modules that a script imports, directly or not, and the templates and data that go by a module's name: an
    edit of one reruns exactly what uses it."""
    modules = modules_of(Path(workflow.basedir) / "scripts" / f"{script}.py")
    beside = (file for module in modules for file in Path(module).parent.glob(f"{Path(module).stem}.*"))
    return modules + sorted(str(file) for file in beside if file.suffix in (".j2", ".yaml"))


def site_files():
    """Templates and assets of the site, which no import tells."""
    folder = Path(workflow.basedir) / "scripts/saeflow/publish/site"
    return sorted(str(file) for part in ("templates", "assets") for file in (folder / part).iterdir())


def method_library(wildcards):
    """The file of an injection method and what it imports: its script finds it by name, so that no import tells."""
    folder = Path(workflow.basedir) / "scripts" / "saeflow" / "injection" / "methods"
    file = folder / f"{METHODS[wildcards.method]}.py"
    return [str(file), *modules_of(file)]


def settings(*sections, **more):
    """The one `cfg` param: wildcards, root seed, device and its precision, whole sections, and what else is named.

    One dict of builtins, because Snakemake compares params as a set of values without their names. A section hides a
    wildcard of the same name (`dataset`, `seed`).
    """
    study = STUDY.model_dump(mode="json")
    fixed = {name: study["compute"][name] for name in ("device", "matmul_precision")}
    fixed |= {"seed": STUDY.seed} | {name: study[name] for name in sections} | more
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


def saes(pattern):
    """A file of every SAE on one set of stores, in the order seeds x variants x SAE seeds."""
    return each(pattern, seed=SEEDS, variant=VARIANTS, sae_seed=SAE_SEEDS)


def saes_of_job(pattern, keys):
    """A file of each SAE that one job trains."""
    return [file for k in keys for file in each(pattern, seed=SEEDS[k.store], variant=k.variant, sae_seed=k.seed)]


def stores(split):
    """Manifests of one split, in the order of the seeds; each carries the digests of its chunks."""
    return each(f"{STORE.replace('{split}', split)}/manifest.json", seed=SEEDS)


def chunks(split):
    """The folders that the manifests speak of: needed, but compared by the manifest alone."""
    parts = each(f"{STORE.replace('{split}', split)}/part-{{shard}}", seed=SEEDS, shard=PARTS)
    return [ancient(part) for part in parts]


def saes_of(wildcards):
    """The concept SAEs, for a method that reads them."""
    return f"{INJECTION}/concept_saes.safetensors" if wildcards.method in SAE_METHODS else []
