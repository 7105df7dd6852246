# Images: embedded, from a folder that the study names, or downloaded.


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
