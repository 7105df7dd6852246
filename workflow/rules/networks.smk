# Networks: classifiers, all seeds and roles of an architecture in one job; language models, downloaded, of a folder, or
# trained here.


rule train_classifiers:
    input:
        dataset=IMAGES,
        lib=library("train_classifiers"),
    output:
        weights=each("<results>/models/{dataset}/{architecture}/{role}.safetensors", role=ROLES),
        sidecars=each("<results>/models/{dataset}/{architecture}/{role}.json", role=ROLES),
    log:
        "<results>/logs/train_classifiers/{dataset}.{architecture}.log",
    benchmark:
        "<results>/benchmarks/train_classifiers/{dataset}.{architecture}.jsonl"
    conda:
        "../../envs/torch.yaml"
    threads: STUDY.compute.threads
    resources:
        mem_mb=memory(2000),
        runtime=60,
        gpu=GPU,
    params:
        cfg=settings("classifiers"),
    script:
        "../../scripts/train_classifiers.py"


CLASSIFIERS = outputs_of(rules.train_classifiers, dataset=DATASET, architecture=ARCHITECTURES)
SIDECARS = each(WEIGHTS.replace(".safetensors", ".json"), architecture=ARCHITECTURES, role=ROLES)


rule models:
    input:
        CLASSIFIERS,


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
            model=each(f"{LANGUAGE}/models/{{network}}/{{file}}", file=TRAINED_FILES),
            training=f"{LANGUAGE}/models/{{network}}/training.json",
        log:
            "<results>/logs/train_language_model/{network}.log",
        benchmark:
            "<results>/benchmarks/train_language_model/{network}.jsonl"
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
            model=lambda wildcards: model_files(wildcards.network),
            lib=library("check_language_model"),
        output:
            touch(CHECKED),
        log:
            "<results>/logs/check_language_model/{network}.{asker}.log",
        benchmark:
            "<results>/benchmarks/check_language_model/{network}.{asker}.jsonl"
        priority: 20
        conda:
            "../../envs/language.yaml"
        resources:
            mem_mb=memory(1000),
            runtime=20,
        params:
            cfg=lambda wildcards: settings(
                model=wildcards.network,
                asked=preflight.asked_of_model(STUDY, wildcards.network)[wildcards.asker],
            )(wildcards),
        script:
            "../../scripts/check_language_model.py"
