# Classifiers: all seeds and roles of an architecture in one job.


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


rule models:
    input:
        outputs_of(rules.train_classifiers, dataset=DATASET, architecture=ARCHITECTURES),
