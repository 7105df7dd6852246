# Language models: text, models, activations of every hook point in one pass, SAEs, what their features show.
wildcard_constraints:
    language_model="|".join(LANGUAGE_MODELS),
    split_of_text="|".join(SPLITS_OF_TEXT),
    snapshot=r"[A-Za-z0-9_.@-]+",
    asker="capture|geometry|inversion",


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
            cfg=settings(text={name: without_paths(TEXT)[name] for name in READ_FROM_TEXT}),
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


if len(EMBEDDED_MODELS) < len(LANGUAGE_MODELS):

    # As soon as a model is there, before text is read for it: of the hub's nothing is known before, and of a folder's as
    # little where jobs have an environment of their own.
    rule check_language_model:
        input:
            model=lambda wildcards: model_files(wildcards.language_model),
            lib=library("check_language_model"),
        output:
            touch(CHECKED),
        log:
            "<results>/logs/check_language_model/{language_model}.{asker}.log",
        benchmark:
            "<results>/benchmarks/check_language_model/{language_model}.{asker}.jsonl"
        priority: 20
        conda:
            "../../envs/language.yaml"
        resources:
            mem_mb=memory(1000),
            runtime=20,
        params:
            cfg=lambda wildcards: settings(
                model=wildcards.language_model,
                asked=preflight.asked_of_model(STUDY, wildcards.language_model)[wildcards.asker],
            )(wildcards),
        script:
            "../../scripts/check_language_model.py"


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
    manifests = each_hook(f"{TEXT_STORE}/manifest.json", models=[name], split_of_text=SPLITS_OF_TEXT)
    # A single job writes whole stores, manifests and all; one of several writes its own part of each.
    part, job = ("part-0", name) if len(TEXT_PARTS) == 1 else ("part-{shard}", f"{name}.{{shard}}")

    rule:
        name:
            f"capture_language_activations{suffix}"
        input:
            model=model_files(name),
            tokens=each(TOKENS, language_model=name, split_of_text=SPLITS_OF_TEXT),
            checked=checked(name, "capture"),
            lib=library("capture_language_activations"),
        output:
            manifests=manifests if len(TEXT_PARTS) == 1 else [],
            parts=[
                directory(path)
                for path in each_hook(f"{TEXT_STORE}/{part}", models=[name], split_of_text=SPLITS_OF_TEXT)
            ],
        log:
            f"<results>/logs/capture_language_activations/{job}.log",
        benchmark:
            f"<results>/benchmarks/capture_language_activations/{job}.jsonl"
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

    if len(TEXT_PARTS) > 1:

        rule:
            name:
                f"gather_language_activations{suffix}"
            input:
                parts=each_hook(
                    f"{TEXT_STORE}/part-{{shard}}", models=[name], split_of_text=SPLITS_OF_TEXT, shard=TEXT_PARTS
                ),
                lib=library("gather_activations"),
            output:
                manifests=manifests,
            log:
                f"<results>/logs/gather_language_activations/{name}.log",
            benchmark:
                f"<results>/benchmarks/gather_language_activations/{name}.jsonl"
            conda:
                "../../envs/torch.yaml"
            resources:
                mem_mb=memory(1000),
                runtime=30,
            params:
                cfg=settings(),
            script:
                "../../scripts/gather_activations.py"


for shard, keys in enumerate(TEXT_SAE_JOBS):
    suffix = f".{shard}" if len(TEXT_SAE_JOBS) > 1 else ""

    rule:
        name:
            f"train_language_saes{suffix.replace('.', '_')}"
        input:
            store=text_store("train")[0],
            chunks=text_store("train")[1],
            lib=library("train_language_saes"),
        output:
            saes=text_saes_of_job(f"{TEXT_SAE}/cfg.json", keys),
            weights=text_saes_of_job(f"{TEXT_SAE}/sae_weights.safetensors", keys),
            curves=text_saes_of_job(f"{TEXT_SAE}.curves.parquet", keys),
        log:
            f"<results>/logs/train_language_saes/{{language_model}}/{{hook}}{suffix}.log",
        benchmark:
            f"<results>/benchmarks/train_language_saes/{{language_model}}/{{hook}}{suffix}.jsonl"
        conda:
            "../../envs/torch.yaml"
        threads: STUDY.compute.threads
        resources:
            mem_mb=memory(3000),
            runtime=720,
            gpu=GPU,
        params:
            cfg=of_training(shard),
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
    LANGUAGE_RESULTS += [rules.gather_language_tables.output, each_hook(f"{TEXT_SAES}.metrics.parquet")]
    LANGUAGE_REPORTED += rules.gather_language_tables.output.parquet
    TEXT_FEATURES_SHOWN |= {
        file: each_hook(f"{TEXT_FEATURES}/{file}", variant=TEXT_VARIANTS)
        for file in (*FEATURE_FILES, "concepts/scores.parquet")
    }
LANGUAGE_RESULTS += [
    DOCUMENTS,
    *(each(f"{LANGUAGE}/models/{name}/{{file}}", file=(*TRAINED_FILES, "training.json")) for name in EMBEDDED_MODELS),
    each(TOKENS, language_model=LANGUAGE_MODELS, split_of_text=SPLITS_OF_TEXT),
    each_hook(f"{TEXT_STORE}/manifest.json", split_of_text=SPLITS_OF_TEXT),
    each_hook(f"{TEXT_STORE}/part-{{shard}}", split_of_text=SPLITS_OF_TEXT, shard=TEXT_PARTS),
    each_hook(f"{TEXT_SAE}/cfg.json", **ALL_TEXT_SAES),
    each_hook(f"{TEXT_SAE}/sae_weights.safetensors", **ALL_TEXT_SAES),
    each_hook(f"{TEXT_SAE}.curves.parquet", **ALL_TEXT_SAES),
    *(each_hook(f"{TEXT_FEATURES}/{file}", variant=TEXT_VARIANTS) for file in FEATURE_FILES),
]


rule language:
    input:
        LANGUAGE_RESULTS,
