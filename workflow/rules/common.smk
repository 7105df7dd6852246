# Shared by the files beside this one: the typed study, the names of its parts, the library files of each script.
import os
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

SCRIPTS = str(Path(workflow.basedir) / "scripts")
sys.path.insert(0, SCRIPTS)
from saeflow import endpoints, plan, preflight
from saeflow.config import reading
from saeflow.config.injection import METHODS, SAE_METHODS
from saeflow.config.sections import ConfigError
from saeflow.library import modules_of
from saeflow.models import language_files
from saeflow.reproduce import ENVIRONMENT

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
ARCHITECTURES = STUDY.classifiers.architectures
ROLES = tuple(STUDY.classifiers.roles)
IMAGES = f"<results>/datasets/{DATASET}.npz"
WEIGHTS = f"<results>/models/{DATASET}/{{architecture}}/{{role}}.safetensors"
INJECTION = "<results>/injection"
LANGUAGE = "<results>/language"
TEXT = STUDY.language and STUDY.language.text
LANGUAGE_MODELS = STUDY.language.models if STUDY.language else {}
DOCUMENTS = f"{LANGUAGE}/texts/documents.parquet"
TOKENS = f"{LANGUAGE}/tokens/{{network}}/{{split}}.parquet"
TEXT_FEATURES = f"{LANGUAGE}/features/{{network}}/{{hook}}/{{variant}}"
SPLITS_OF_TEXT = plan.SPLITS["texts"]
TRAINED_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)
CHECKED = "<results>/checks/{network}.{asker}"
# Models of the hub, by the folder that each is downloaded to.
SNAPSHOTS = {
    language_files.snapshot_name(m.id, m.revision): m.model_dump(include={"id", "revision", "trust_remote_code"})
    for m in LANGUAGE_MODELS.values()
    if m.id
}
EMBEDDED_MODELS = [name for name, m in LANGUAGE_MODELS.items() if m.embedded]
FOLDERS = {
    name: list(map(str, language_files.files_of(m.folder, m.trust_remote_code)))
    for name, m in LANGUAGE_MODELS.items()
    if m.folder
}
GPU = int(STUDY.compute.device == "cuda")
# What is captured, and the SAEs on it.
CAPTURED = list(plan.captured(STUDY))
FITTED = list(plan.fitted(STUDY, CAPTURED))
OF_IMAGES = next((saes for saes in FITTED if saes.reads == "images"), None)
OF_TEXTS = next((saes for saes in FITTED if saes.reads == "texts"), None)
# Filled by injection.smk, which is part of studies with that section only.
INJECTION_RESULTS, INJECTION_REPORTED = [], []
# Added to by the files of catalog, geometry and inversion.
LANGUAGE_RESULTS = []
if TEXT:
    LANGUAGE_RESULTS += [
        DOCUMENTS,
        *expand(f"{LANGUAGE}/models/{{name}}/{{file}}", name=EMBEDDED_MODELS, file=(*TRAINED_FILES, "training.json")),
        *expand(TOKENS, network=LANGUAGE_MODELS, split=SPLITS_OF_TEXT),
    ]
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


wildcard_constraints:
    dataset="[a-z0-9_]+",
    architecture="[A-Za-z0-9]+",
    role="[a-z0-9_]+",
    network=r"[A-Za-z0-9_]+(-[a-z0-9_]+)?",
    seed=r"\d+",
    sae_seed=r"\d+",
    hook=r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*",
    split="train|test|held_out",
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


def library(script, *kinds):
    """Library modules that a script imports, directly or not, and the templates and data that go by a module's name: an
    edit of one reruns exactly what uses it. Of a registry of kinds that has some of those named, only these count."""
    modules = modules_of(Path(workflow.basedir) / "scripts" / f"{script}.py", kinds)
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


def model_files(name):
    """Files of a model, or the folder that it is downloaded to."""
    model = LANGUAGE_MODELS[name]
    if model.embedded:
        return [f"{LANGUAGE}/models/{name}/{file}" for file in TRAINED_FILES]
    if model.id:
        return [f"data/language_models/{language_files.snapshot_name(model.id, model.revision)}"]
    return FOLDERS[name]


def checked(name, asker):
    """The mark of a model that has what an asker wants; what a study trains itself is known from the study."""
    return (
        []
        if name not in LANGUAGE_MODELS or LANGUAGE_MODELS[name].embedded
        else each(CHECKED, network=name, asker=asker)
    )


def of_model(*sections, keys=None, **more):
    """The `cfg` of a job of one model: its name, keys of its section (all, if not named), sections of the language
    study."""
    shared = settings(**{name: plan.without_paths(getattr(STUDY.language, name)) for name in sections}, **more)

    def cfg(wildcards):
        model = plan.without_paths(LANGUAGE_MODELS[wildcards.network])
        kept = {name: value for name, value in model.items() if keys is None or name in keys}
        return shared(wildcards) | {"model": wildcards.network, "settings": kept}

    return cfg


def of_hook(**more):
    """The `cfg` of a job of one hook point of a model."""
    shared = of_model(keys=["dtype", "attention", "device_map", "trust_remote_code"], **more)

    def cfg(wildcards):
        point = LANGUAGE_MODELS[wildcards.network].hooks[wildcards.hook]
        return shared(wildcards) | {"hook_point": point.model_dump(mode="json")}

    return cfg


def each_hook(pattern, **values):
    """Paths of a pattern over models and the hook points of each."""
    return [
        path
        for name in LANGUAGE_MODELS
        for path in each(pattern, network=name, hook=list(LANGUAGE_MODELS[name].hooks), **values)
    ]


def network_files(name):
    """Files of a network by its name."""
    if name in LANGUAGE_MODELS:
        return model_files(name)
    architecture, _, role = name.partition("-")
    return each(WEIGHTS, architecture=architecture, role=role)


def input_files(name, splits=SPLITS_OF_TEXT):
    """Files of what a network reads: the images, or its tokens of some splits."""
    return each(TOKENS, network=name, split=splits) if name in LANGUAGE_MODELS else [IMAGES]


def features_of(fitted, file):
    """A file of every SAE whose features are analyzed; none without SAEs."""
    return fitted.everywhere(fitted.features(file)) if fitted else []


def of_saes(fitted, *told, **more):
    """The `cfg` of a job of the SAEs on one hook point of a network: columns that say which member a row is of, and what
    else is asked for: `origins` of the SAEs, the `section` of the network."""
    shared = settings(**more)

    def cfg(wildcards):
        network, hook = wildcards.network, wildcards.hook
        named = {"members": fitted.members_of(network, hook)}
        if "origins" in told:
            named["origins"] = fitted.origins_of(network, hook)
        if "section" in told and network in LANGUAGE_MODELS:
            named["section"] = plan.without_paths(LANGUAGE_MODELS[network])
        return shared(wildcards) | named

    return cfg


def saes_of(wildcards):
    """The concept SAEs, for a method that reads them."""
    return f"{INJECTION}/concept_saes.safetensors" if wildcards.method in SAE_METHODS else []
