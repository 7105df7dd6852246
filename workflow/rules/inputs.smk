# Inputs: images and text, embedded, from a folder that the study names, or downloaded; text as tokens of each model.
from saeflow.datasets import files, texts

# Files that the study names, else the folder that they are downloaded to; an embedded set has none.
RAW = ["data/{dataset}"]
if DATASET == "digits":
    RAW = []
elif STUDY.dataset.data_dir:
    RAW = list(map(str, files.find(DATASET, STUDY.dataset.data_dir)))


rule download_dataset:
    input:
        lib=library("download_dataset"),
    output:
        raw=protected(directory("data/{dataset}")),
    log:
        "<results>/logs/download_dataset/{dataset}.log",
    benchmark:
        "<results>/benchmarks/download_dataset/{dataset}.jsonl"
    retries: 3
    conda:
        "../../envs/data.yaml"
    resources:
        mem_mb=memory(1000),
        runtime=30,
    params:
        cfg=settings("dataset"),
    script:
        "../../scripts/download_dataset.py"


rule build_dataset:
    input:
        raw=RAW,
        lib=library("build_dataset"),
    output:
        dataset="<results>/datasets/{dataset}.npz",
    log:
        "<results>/logs/build_dataset/{dataset}.log",
    benchmark:
        "<results>/benchmarks/build_dataset/{dataset}.jsonl"
    conda:
        "../../envs/data.yaml"
    resources:
        mem_mb=memory(1000),
        runtime=10,
    params:
        cfg=settings("dataset"),
    script:
        "../../scripts/build_dataset.py"


rule datasets:
    input:
        IMAGES,


if TEXT and TEXT.dataset:

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

elif TEXT:
    # What documents depend on; of a folder are read no more than the tokens need.
    READ_FROM_TEXT = ["documents", "hierarchy"]
    if TEXT.folder:
        READ_FROM_TEXT = ["folder", "separator", "column", "train_tokens", "held_out_tokens"]

    rule build_texts:
        input:
            raw=(
                list(map(str, texts.files_of(TEXT.folder)))
                if TEXT.folder
                else [TEXT.hierarchy or f"{workflow.basedir}/config/concepts/hierarchy.yaml"]
            ),
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
            cfg=settings(text={name: plan.without_paths(TEXT)[name] for name in READ_FROM_TEXT}),
        script:
            "../../scripts/build_texts.py"


if TEXT:

    rule tokenize_texts:
        input:
            documents=DOCUMENTS,
            model=lambda wildcards: model_files(wildcards.network),
            lib=library("tokenize_texts"),
        output:
            tokens=each(TOKENS, split=SPLITS_OF_TEXT),
        log:
            "<results>/logs/tokenize_texts/{network}.log",
        benchmark:
            "<results>/benchmarks/tokenize_texts/{network}.jsonl"
        conda:
            "../../envs/language.yaml"
        resources:
            mem_mb=memory(2000),
            runtime=120,
        params:
            cfg=of_model("text", keys=["trust_remote_code"]),
        script:
            "../../scripts/tokenize_texts.py"
