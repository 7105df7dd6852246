# Inverse embeddings: features of language models worth asking about, what text drives them most, what they mean.
INVERSION = STUDY.inversion
INVERTED = f"{LANGUAGE}/inversion/{{network}}/{{hook}}/{{variant}}"
INVERTED_SAE = OF_TEXTS.of("", "{variant}", OF_TEXTS.feature_seeds[0])
STAGES = INVERSION.pipeline
INVERSION_TABLES = ["selection"]
INVERSION_FIGURES = ["selection"]
if STAGES.optimize:
    INVERSION_TABLES += ["texts", "fronts", "curves"]
    INVERSION_FIGURES += ["ratios", "curves", "fronts", "heatmaps"]
if STAGES.explain:
    INVERSION_TABLES += ["explanations"]
    INVERSION_FIGURES += ["explanations"]


rule select_inversion_features:
    input:
        model=lambda wildcards: model_files(wildcards.network),
        sae=f"{INVERTED_SAE}/cfg.json",
        weights=f"{INVERTED_SAE}/sae_weights.safetensors",
        store=OF_TEXTS.manifests("train")[0],
        chunks=map(ancient, OF_TEXTS.parts("train")),
        features=f"{TEXT_FEATURES}/features.parquet",
        lib=library("select_inversion_features"),
    output:
        activity=f"{INVERTED}/activity.npz",
        selection=f"{INVERTED}/selection.parquet",
        distances=f"{INVERTED}/distances.parquet",
        summary=f"{INVERTED}/selection.json",
    log:
        "<results>/logs/select_inversion_features/{network}/{hook}/{variant}.log",
    benchmark:
        "<results>/benchmarks/select_inversion_features/{network}/{hook}/{variant}.jsonl"
    conda:
        "../../envs/language.yaml"
    threads: STUDY.compute.threads
    resources:
        mem_mb=memory(2000),
        runtime=120,
        gpu=GPU,
    params:
        cfg=of_hook(inversion=INVERSION.model_dump(mode="json", include={"data", "clustering"})),
    script:
        "../../scripts/select_inversion_features.py"


rule invert_features:
    input:
        model=lambda wildcards: model_files(wildcards.network),
        sae=f"{INVERTED_SAE}/cfg.json",
        weights=f"{INVERTED_SAE}/sae_weights.safetensors",
        store=OF_TEXTS.manifests("train")[0],
        chunks=map(ancient, OF_TEXTS.parts("train")),
        activity=rules.select_inversion_features.output.activity,
        summary=rules.select_inversion_features.output.summary,
        checked=lambda wildcards: checked(wildcards.network, "inversion"),
        lib=library("invert_features"),
    output:
        texts=f"{INVERTED}/texts.parquet",
        fronts=f"{INVERTED}/fronts.parquet",
        curves=f"{INVERTED}/curves.parquet",
    log:
        "<results>/logs/invert_features/{network}/{hook}/{variant}.log",
    benchmark:
        "<results>/benchmarks/invert_features/{network}/{hook}/{variant}.jsonl"
    conda:
        "../../envs/language.yaml"
    threads: STUDY.compute.threads
    resources:
        mem_mb=memory(3000),
        runtime=720,
        gpu=GPU,
    params:
        cfg=of_hook(inversion=INVERSION.model_dump(mode="json", include={"hardware", "optimization"})),
    script:
        "../../scripts/invert_features.py"


rule explain_inversion_features:
    input:
        model=lambda wildcards: model_files(wildcards.network),
        sae=f"{INVERTED_SAE}/cfg.json",
        weights=f"{INVERTED_SAE}/sae_weights.safetensors",
        stores=[OF_TEXTS.manifests(split)[0] for split in SPLITS_OF_TEXT],
        chunks=[ancient(part) for split in SPLITS_OF_TEXT for part in OF_TEXTS.parts(split)],
        features=f"{TEXT_FEATURES}/features.parquet",
        activity=rules.select_inversion_features.output.activity,
        selection=rules.select_inversion_features.output.summary,
        found=rules.invert_features.output.texts if STAGES.optimize else [],
        lib=library("explain_inversion_features"),
    output:
        explanations=f"{INVERTED}/explanations.parquet",
        scores=f"{INVERTED}/explanations.json",
    log:
        "<results>/logs/explain_inversion_features/{network}/{hook}/{variant}.log",
    benchmark:
        "<results>/benchmarks/explain_inversion_features/{network}/{hook}/{variant}.jsonl"
    conda:
        "../../envs/language.yaml"
    threads: STUDY.compute.threads
    resources:
        mem_mb=memory(3000),
        runtime=120,
        gpu=GPU,
    params:
        cfg=of_hook(inversion=INVERSION.model_dump(mode="json", include={"explanation"})),
    script:
        "../../scripts/explain_inversion_features.py"


rule draw_inversion_figures:
    input:
        tables=each(f"{INVERTED}/{{table}}.parquet", table=INVERSION_TABLES),
        lib=library("draw_inversion_figures"),
    output:
        png=report(
            each(f"{INVERTED}/figures/{{figure}}.png", figure=INVERSION_FIGURES),
            caption="../report/figure.rst",
            category="Inversion",
        ),
        svg=each(f"{INVERTED}/figures/{{figure}}.svg", figure=INVERSION_FIGURES),
        page=[f"{INVERTED}/figures/map.html"] if INVERSION.output.interactive_map else [],
    log:
        "<results>/logs/draw_inversion_figures/{network}/{hook}/{variant}.log",
    benchmark:
        "<results>/benchmarks/draw_inversion_figures/{network}/{hook}/{variant}.jsonl"
    conda:
        "../../envs/publish.yaml"
    resources:
        mem_mb=memory(1000),
        runtime=10,
    params:
        cfg=settings(by=INVERSION.clustering.by),
    script:
        "../../scripts/draw_inversion_figures.py"


DONE = [rules.select_inversion_features]
DONE += [rules.invert_features] if STAGES.optimize else []
DONE += [rules.explain_inversion_features] if STAGES.explain else []
DONE += [rules.draw_inversion_figures] if STAGES.visualize else []
INVERSION_OF_TEXT = [each_hook(str(path), variant=OF_TEXTS.variants) for rule in DONE for path in rule.output]
LANGUAGE_RESULTS += INVERSION_OF_TEXT
SHOWN_OF_INVERSION = [table for table in INVERSION_TABLES if table != "curves"]
INVERSION_SHOWN += each_hook(f"{INVERTED}/{{table}}.parquet", variant=OF_TEXTS.variants, table=SHOWN_OF_INVERSION)


rule inversion:
    input:
        INVERSION_OF_TEXT,
