# Language models: text, models, activations of every hook point in one pass, SAEs, what their features show.
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
TEXT_STORE = f"{LANGUAGE}/activations/{{language_model}}/{{hook}}/{{split_of_text}}"
TEXT_SAES = f"{LANGUAGE}/saes/{{language_model}}/{{hook}}"
TEXT_SAE = f"{TEXT_SAES}/{{variant}}-s{{sae_seed}}"
TEXT_FEATURES = f"{LANGUAGE}/features/{{language_model}}/{{hook}}/{{variant}}"
LANGUAGE_TABLES = ("saes", "saes_summary", "training", "features_summary")
FEATURE_FILES = ("features.parquet", "contexts.parquet", "summary.json")
TEXT_VARIANTS = list(SPEC.saes.variants)
ALL_TEXT_SAES = dict(variant=TEXT_VARIANTS, sae_seed=SPEC.saes.seeds)
# Models of the hub, by the folder that each is downloaded to.
SNAPSHOTS = {
    language_files.snapshot_name(m.id, m.revision): m.model_dump(include={"id", "revision", "trust_remote_code"})
    for m in LANGUAGE_MODELS.values()
    if m.id
}
EMBEDDED_MODELS = [name for name, m in LANGUAGE_MODELS.items() if m.embedded]


wildcard_constraints:
    language_model="|".join(LANGUAGE_MODELS),
    split_of_text="|".join(SPLITS_OF_TEXT),
    snapshot=r"[A-Za-z0-9_.@-]+",


def model_files(name):
    """Files of a model, or the folder that it is downloaded to."""
    model = LANGUAGE_MODELS[name]
    if model.embedded:
        return [f"{LANGUAGE}/models/{name}/{file}" for file in TRAINED_FILES]
    if model.id:
        return [f"data/language_models/{language_files.snapshot_name(model.id, model.revision)}"]
    return FOLDERS[name]


def without_paths(section):
    """A section as jobs get it: that there is a folder, not where it is, which their inputs tell."""
    paths = {name: "given" for name in ("folder", "hierarchy") if getattr(section, name, None)}
    return section.model_dump(mode="json") | paths


def of_model(*sections, keys=None, **more):
    """The `cfg` of a job of one model: its name, keys of its section (all, if not named), sections of the language
    study."""
    shared = settings(**{name: without_paths(getattr(SPEC, name)) for name in sections}, **more)

    def cfg(wildcards):
        model = without_paths(LANGUAGE_MODELS[wildcards.language_model])
        kept = {name: value for name, value in model.items() if keys is None or name in keys}
        return shared(wildcards) | {"model": wildcards.language_model, "settings": kept}

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
    {name: without_paths(getattr(SPEC, name)) for name in ("text", "activations", "saes", "features")}
    | {"models": {name: without_paths(model) for name, model in LANGUAGE_MODELS.items()}, "seed": STUDY.seed}
)
try:
    FOLDERS = {
        name: list(map(str, language_files.files_of(m.folder, m.trust_remote_code)))
        for name, m in LANGUAGE_MODELS.items()
        if m.folder
    }
    TEXT_FILES = list(map(str, texts.files_of(TEXT.folder))) if TEXT.folder else []
except (language_files.ModelFilesError, texts.TextError) as error:
    raise WorkflowError(f"The study cannot be run as it is written:\n{error}")

if TEXT.dataset:

    rule download_texts:
        input:
            lib=library("download_texts"),
        output:
            documents=DOCUMENTS,
        log:
            "<results>/logs/download_texts.log",
        benchmark:
            "<results>/benchmarks/download_texts.jsonl"
        retries: 3
        conda:
            "../../envs/language.yaml"
        resources:
            mem_mb=memory(2000),
            runtime=240,
        params:
            cfg=settings(text=TEXT.model_dump(mode="json")),
        script:
            "../../scripts/download_texts.py"

else:

    rule build_texts:
        input:
            raw=TEXT_FILES or [TEXT.hierarchy or f"{workflow.basedir}/config/concepts/hierarchy.yaml"],
            lib=library("build_texts"),
        output:
            documents=DOCUMENTS,
        log:
            "<results>/logs/build_texts.log",
        benchmark:
            "<results>/benchmarks/build_texts.jsonl"
        conda:
            "../../envs/language.yaml"
        resources:
            mem_mb=memory(1000),
            runtime=60,
        params:
            cfg=settings(text=without_paths(TEXT)),
        script:
            "../../scripts/build_texts.py"


if SNAPSHOTS:

    rule download_language_model:
        input:
            lib=library("download_language_model"),
        output:
            folder=protected(directory("data/language_models/{snapshot}")),
        log:
            "<results>/logs/download_language_model/{snapshot}.log",
        benchmark:
            "<results>/benchmarks/download_language_model/{snapshot}.jsonl"
        retries: 3
        conda:
            "../../envs/language.yaml"
        resources:
            mem_mb=memory(1000),
            runtime=240,
        params:
            cfg=settings(snapshots=SNAPSHOTS),
        script:
            "../../scripts/download_language_model.py"


if EMBEDDED_MODELS:

    rule train_language_model:
        input:
            documents=DOCUMENTS,
            lib=library("train_language_model"),
        output:
            model=each(f"{LANGUAGE}/models/{{language_model}}/{{file}}", file=TRAINED_FILES),
            training=f"{LANGUAGE}/models/{{language_model}}/training.json",
        log:
            "<results>/logs/train_language_model/{language_model}.log",
        benchmark:
            "<results>/benchmarks/train_language_model/{language_model}.jsonl"
        # The longest job of a small study: it begins as soon as it can.
        priority: 10
        conda:
            "../../envs/language.yaml"
        threads: STUDY.compute.threads
        resources:
            mem_mb=memory(2000),
            runtime=120,
            gpu=GPU,
        params:
            cfg=of_model("text", keys=["embedded"]),
        script:
            "../../scripts/train_language_model.py"


rule tokenize_texts:
    input:
        documents=DOCUMENTS,
        model=lambda wildcards: model_files(wildcards.language_model),
        lib=library("tokenize_texts"),
    output:
        tokens=each(TOKENS, split_of_text=SPLITS_OF_TEXT),
    log:
        "<results>/logs/tokenize_texts/{language_model}.log",
    benchmark:
        "<results>/benchmarks/tokenize_texts/{language_model}.jsonl"
    conda:
        "../../envs/language.yaml"
    resources:
        mem_mb=memory(2000),
        runtime=120,
    params:
        cfg=of_model("text", keys=["trust_remote_code"]),
    script:
        "../../scripts/tokenize_texts.py"


# A rule per model, because each has its own hook points and Snakemake wants the names of a rule's outputs.
for name in LANGUAGE_MODELS:
    suffix = f"_{name}" if len(LANGUAGE_MODELS) > 1 else ""

    rule:
        name:
            f"capture_language_activations{suffix}"
        input:
            model=model_files(name),
            tokens=each(TOKENS, language_model=name, split_of_text=SPLITS_OF_TEXT),
            lib=library("capture_language_activations"),
        output:
            manifests=each_hook(f"{TEXT_STORE}/manifest.json", models=[name], split_of_text=SPLITS_OF_TEXT),
            parts=[
                directory(part)
                for part in each_hook(f"{TEXT_STORE}/part-0", models=[name], split_of_text=SPLITS_OF_TEXT)
            ],
        log:
            f"<results>/logs/capture_language_activations/{name}.log",
        benchmark:
            f"<results>/benchmarks/capture_language_activations/{name}.jsonl"
        conda:
            "../../envs/language.yaml"
        threads: STUDY.compute.threads
        resources:
            mem_mb=memory(4000),
            runtime=240,
            gpu=GPU,
        params:
            cfg=settings(
                model=name,
                settings=without_paths(LANGUAGE_MODELS[name]),
                activations=SPEC.activations.model_dump(mode="json"),
            ),
        script:
            "../../scripts/capture_language_activations.py"


def text_store(split):
    """Manifest of one split of a hook point, and the folder that it speaks of: needed, but compared by the manifest."""
    store = TEXT_STORE.replace("{split_of_text}", split)
    return f"{store}/manifest.json", ancient(f"{store}/part-0")


def origin(wildcards):
    """What the files of an SAE say of its model: a name that others know, where there is one."""
    model = LANGUAGE_MODELS[wildcards.language_model]
    loaded = {"model_name": model.id or wildcards.language_model, "model_class_name": "AutoModelForCausalLM"}
    return loaded | {"model_revision": model.revision, "dataset_path": TEXT.dataset or "text"}


rule train_language_saes:
    input:
        store=text_store("train")[0],
        chunks=text_store("train")[1],
        lib=library("train_language_saes"),
    output:
        saes=each(f"{TEXT_SAE}/cfg.json", **ALL_TEXT_SAES),
        weights=each(f"{TEXT_SAE}/sae_weights.safetensors", **ALL_TEXT_SAES),
        curves=each(f"{TEXT_SAE}.curves.parquet", **ALL_TEXT_SAES),
    log:
        "<results>/logs/train_language_saes/{language_model}/{hook}.log",
    benchmark:
        "<results>/benchmarks/train_language_saes/{language_model}/{hook}.jsonl"
    conda:
        "../../envs/torch.yaml"
    threads: STUDY.compute.threads
    resources:
        mem_mb=memory(3000),
        runtime=720,
        gpu=GPU,
    params:
        cfg=lambda wildcards: of_model("saes", keys=[])(wildcards) | {"origin": origin(wildcards)},
    script:
        "../../scripts/train_language_saes.py"


rule evaluate_language_saes:
    input:
        model=lambda wildcards: model_files(wildcards.language_model),
        tokens=TOKENS.replace("{split_of_text}", "held_out"),
        store=text_store("held_out")[0],
        chunks=text_store("held_out")[1],
        saes=each(f"{TEXT_SAE}/cfg.json", **ALL_TEXT_SAES),
        weights=each(f"{TEXT_SAE}/sae_weights.safetensors", **ALL_TEXT_SAES),
        lib=library("evaluate_language_saes"),
    output:
        metrics=f"{TEXT_SAES}.metrics.parquet",
    log:
        "<results>/logs/evaluate_language_saes/{language_model}/{hook}.log",
    benchmark:
        "<results>/benchmarks/evaluate_language_saes/{language_model}/{hook}.jsonl"
    conda:
        "../../envs/language.yaml"
    threads: STUDY.compute.threads
    resources:
        mem_mb=memory(4000),
        runtime=240,
        gpu=GPU,
    params:
        cfg=of_model("activations", variants=TEXT_VARIANTS, sae_seeds=list(SPEC.saes.seeds)),
    script:
        "../../scripts/evaluate_language_saes.py"


rule analyze_language_features:
    input:
        model=lambda wildcards: model_files(wildcards.language_model),
        store=text_store("train")[0],
        chunks=text_store("train")[1],
        saes=each(f"{TEXT_SAE}/cfg.json", variant=TEXT_VARIANTS, sae_seed=SPEC.saes.seeds[0]),
        weights=each(f"{TEXT_SAE}/sae_weights.safetensors", variant=TEXT_VARIANTS, sae_seed=SPEC.saes.seeds[0]),
        metrics=f"{TEXT_SAES}.metrics.parquet",
        lib=library("analyze_language_features"),
    output:
        features=each(f"{TEXT_FEATURES}/features.parquet", variant=TEXT_VARIANTS),
        contexts=each(f"{TEXT_FEATURES}/contexts.parquet", variant=TEXT_VARIANTS),
        summaries=each(f"{TEXT_FEATURES}/summary.json", variant=TEXT_VARIANTS),
    log:
        "<results>/logs/analyze_language_features/{language_model}/{hook}.log",
    benchmark:
        "<results>/benchmarks/analyze_language_features/{language_model}/{hook}.jsonl"
    conda:
        "../../envs/language.yaml"
    threads: STUDY.compute.threads
    resources:
        mem_mb=memory(4000),
        runtime=480,
        gpu=GPU,
    params:
        cfg=of_model(
            "features",
            study=STUDY.study,
            variants=TEXT_VARIANTS,
            sae_seed=SPEC.saes.seeds[0],
            config_digest=LANGUAGE_DIGEST,
        ),
    script:
        "../../scripts/analyze_language_features.py"


rule gather_language_tables:
    input:
        metrics=each_hook(f"{TEXT_SAES}.metrics.parquet"),
        curves=each_hook(f"{TEXT_SAE}.curves.parquet", **ALL_TEXT_SAES),
        summaries=each_hook(f"{TEXT_FEATURES}/summary.json", variant=TEXT_VARIANTS),
        lib=library("gather_language_tables"),
    output:
        parquet=each(f"{LANGUAGE}/tables/{{table}}.parquet", table=LANGUAGE_TABLES),
        csv=report(
            each(f"{LANGUAGE}/tables/{{table}}.csv", table=LANGUAGE_TABLES),
            caption="../report/table.rst",
            category="Language",
        ),
    log:
        "<results>/logs/gather_language_tables.log",
    benchmark:
        "<results>/benchmarks/gather_language_tables.jsonl"
    conda:
        "../../envs/publish.yaml"
    resources:
        mem_mb=memory(1000),
        runtime=10,
    params:
        cfg=settings(),
    script:
        "../../scripts/gather_language_tables.py"


if TEXT_VARIANTS:
    LANGUAGE_RESULTS += [rules.gather_language_tables.output]
    LANGUAGE_REPORTED += rules.gather_language_tables.output.parquet
LANGUAGE_RESULTS += [
    DOCUMENTS,
    *(each(f"{LANGUAGE}/models/{name}/{{file}}", file=(*TRAINED_FILES, "training.json")) for name in EMBEDDED_MODELS),
    each(TOKENS, language_model=LANGUAGE_MODELS, split_of_text=SPLITS_OF_TEXT),
    each_hook(f"{TEXT_STORE}/manifest.json", split_of_text=SPLITS_OF_TEXT),
    each_hook(f"{TEXT_STORE}/part-0", split_of_text=SPLITS_OF_TEXT),
    each_hook(f"{TEXT_SAE}/cfg.json", **ALL_TEXT_SAES),
    each_hook(f"{TEXT_SAE}/sae_weights.safetensors", **ALL_TEXT_SAES),
    each_hook(f"{TEXT_SAE}.curves.parquet", **ALL_TEXT_SAES),
    each_hook(f"{TEXT_SAES}.metrics.parquet"),
    *(each_hook(f"{TEXT_FEATURES}/{file}", variant=TEXT_VARIANTS) for file in FEATURE_FILES),
]


rule language:
    input:
        LANGUAGE_RESULTS,
