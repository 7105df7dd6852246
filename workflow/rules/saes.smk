# Sparse autoencoders on the stores of one architecture, role and hook point: every variant and seed in one job, or in
# `saes.shards` jobs, each a rule because Snakemake wants the names of its outputs.
for shard, keys in enumerate(SAE_JOBS):
    suffix = f".{shard}" if len(SAE_JOBS) > 1 else ""

    rule:
        name:
            f"train_saes{suffix.replace('.', '_')}"
        input:
            dataset=IMAGES,
            weights=WEIGHTS,
            stores=stores("train"),
            chunks=chunks("train"),
            lib=library("train_saes"),
        output:
            saes=saes_of_job(SAE_CONFIG, keys),
            weights_of_saes=saes_of_job(SAE_WEIGHTS, keys),
            curves=saes_of_job(SAE_CURVES, keys),
        log:
            f"<results>/logs/train_saes/{SAE_GROUP}{suffix}.log",
        benchmark:
            f"<results>/benchmarks/train_saes/{SAE_GROUP}{suffix}.jsonl"
        conda:
            "../../envs/torch.yaml"
        threads: STUDY.compute.threads
        resources:
            mem_mb=memory(2000),
            runtime=240,
            gpu=GPU,
        params:
            cfg=settings("saes", seeds=list(SEEDS), shard=shard),
        script:
            "../../scripts/train_saes.py"


rule evaluate_saes:
    input:
        dataset=IMAGES,
        weights=WEIGHTS,
        stores=stores("test"),
        chunks=chunks("test"),
        saes=saes(SAE_CONFIG),
        weights_of_saes=saes(SAE_WEIGHTS),
        lib=library("evaluate_saes"),
    output:
        metrics=f"<results>/saes/{SAE_GROUP}.metrics.parquet",
    log:
        f"<results>/logs/evaluate_saes/{SAE_GROUP}.log",
    benchmark:
        f"<results>/benchmarks/evaluate_saes/{SAE_GROUP}.jsonl"
    conda:
        "../../envs/torch.yaml"
    threads: STUDY.compute.threads
    resources:
        mem_mb=memory(2000),
        runtime=30,
        gpu=GPU,
    params:
        cfg=settings(seeds=list(SEEDS), variants=list(VARIANTS), sae_seeds=list(SAE_SEEDS)),
    script:
        "../../scripts/evaluate_saes.py"


FITTED = each([*saes(SAE_CONFIG), *saes(SAE_WEIGHTS), *saes(SAE_CURVES)], **TRAINED_AT)


rule saes:
    input:
        FITTED,
        outputs_of(rules.evaluate_saes, **TRAINED_AT),
