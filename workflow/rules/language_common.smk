# Shared by the rules of language models: the names of their parts, and what their jobs get.
from saeflow.datasets import texts
from saeflow.models import language_files
from saeflow.reproduce import digest_of

SPEC = STUDY.language
TEXT = SPEC.text
LANGUAGE_MODELS = SPEC.models
SPLITS_OF_TEXT = texts.SPLITS
LANGUAGE = "<results>/language"
DOCUMENTS = f"{LANGUAGE}/texts/documents.parquet"
TRAINED_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)
TOKENS = f"{LANGUAGE}/tokens/{{language_model}}/{{split_of_text}}.parquet"
CHECKED = "<results>/checks/{language_model}.{asker}"
TEXT_STORE = f"{LANGUAGE}/activations/{{language_model}}/{{hook}}/{{split_of_text}}"
# Parts of each store, one per capture job; the SAEs of each training job.
TEXT_PARTS = range(SPEC.activations.shards)
TEXT_SAE_JOBS = jobs(SPEC.saes, 1, STUDY.compute.device)
TEXT_SAES = f"{LANGUAGE}/saes/{{language_model}}/{{hook}}"
TEXT_SAE = f"{TEXT_SAES}/{{variant}}-s{{sae_seed}}"
TEXT_FEATURES = f"{LANGUAGE}/features/{{language_model}}/{{hook}}/{{variant}}"
LANGUAGE_TABLES = ("saes", "saes_summary", "training", "features_summary")
FEATURE_FILES = ("features.parquet", "contexts.parquet", "summary.json")
TEXT_VARIANTS = list(SPEC.saes.variants)
ALL_TEXT_SAES = dict(variant=TEXT_VARIANTS, sae_seed=SPEC.saes.seeds)
# What documents depend on; of a folder are read no more than the tokens need.
READ_FROM_TEXT = ["documents", "hierarchy"]
if TEXT.folder:
    READ_FROM_TEXT = ["folder", "separator", "column", "train_tokens", "held_out_tokens"]
# Models of the hub, by the folder that each is downloaded to.
SNAPSHOTS = {
    language_files.snapshot_name(m.id, m.revision): m.model_dump(include={"id", "revision", "trust_remote_code"})
    for m in LANGUAGE_MODELS.values()
    if m.id
}
EMBEDDED_MODELS = [name for name, m in LANGUAGE_MODELS.items() if m.embedded]


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
    return [] if LANGUAGE_MODELS[name].embedded else each(CHECKED, language_model=name, asker=asker)


def without_paths(section):
    """A section as jobs get it: that there is a folder, not where it is, which their inputs tell."""
    paths = {name: "given" for name in ("folder", "hierarchy") if getattr(section, name, None)}
    return section.model_dump(mode="json") | paths


def without_shards(section):
    """A section as what is made from it depends on it: not on the number of jobs."""
    return {name: value for name, value in without_paths(section).items() if name != "shards"}


def of_model(*sections, keys=None, **more):
    """The `cfg` of a job of one model: its name, keys of its section (all, if not named), sections of the language
    study."""
    shared = settings(**{name: without_paths(getattr(SPEC, name)) for name in sections}, **more)

    def cfg(wildcards):
        model = without_paths(LANGUAGE_MODELS[wildcards.language_model])
        kept = {name: value for name, value in model.items() if keys is None or name in keys}
        return shared(wildcards) | {"model": wildcards.language_model, "settings": kept}

    return cfg


def of_training(shard):
    """The `cfg` of a job that trains SAEs of one hook point: all of them, or its share."""
    shared = of_model("saes", keys=[], shard=shard)
    return lambda wildcards: shared(wildcards) | {"origin": origin(wildcards)}


def of_hook(**more):
    """The `cfg` of a job of one hook point of a model."""
    shared = of_model(keys=["dtype", "attention", "device_map", "trust_remote_code"], **more)

    def cfg(wildcards):
        point = LANGUAGE_MODELS[wildcards.language_model].hooks[wildcards.hook]
        return shared(wildcards) | {"hook_point": point.model_dump(mode="json")}

    return cfg


def each_hook(pattern, models=LANGUAGE_MODELS, **values):
    """Paths of a pattern over models and the hook points of each."""
    return [
        path
        for name in models
        for path in each(pattern, language_model=name, hook=list(LANGUAGE_MODELS[name].hooks), **values)
    ]


# What features are made by, wherever the files lie.
LANGUAGE_DIGEST = digest_of(
    {name: without_shards(getattr(SPEC, name)) for name in ("text", "activations", "saes", "features")}
    | {"models": {name: without_paths(model) for name, model in LANGUAGE_MODELS.items()}, "seed": STUDY.seed}
)
FOLDERS = {
    name: list(map(str, language_files.files_of(m.folder, m.trust_remote_code)))
    for name, m in LANGUAGE_MODELS.items()
    if m.folder
}
TEXT_FILES = list(map(str, texts.files_of(TEXT.folder))) if TEXT.folder else []


def text_store(split):
    """Manifest of one split of a hook point, and the folders that it speaks of: needed, but compared by the manifest."""
    store = TEXT_STORE.replace("{split_of_text}", split)
    return f"{store}/manifest.json", [ancient(part) for part in each(f"{store}/part-{{shard}}", shard=TEXT_PARTS)]


def text_saes_of_job(pattern, keys):
    """A file of each SAE that one job trains."""
    return [file for key in keys for file in each(pattern, variant=key.variant, sae_seed=key.seed)]


def origin(wildcards):
    """What the files of an SAE say of its model: a name that others know, where there is one."""
    model = LANGUAGE_MODELS[wildcards.language_model]
    loaded = {"model_name": model.id or wildcards.language_model, "model_class_name": "AutoModelForCausalLM"}
    return loaded | {"model_revision": model.revision, "dataset_path": TEXT.dataset or "text"}
