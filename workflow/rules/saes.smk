# Sparse autoencoders: every variant and seed on the stores of one architecture, role and hook point in one job.


rule train_saes:
    input:
        dataset=IMAGES,
        weights=WEIGHTS,
        stores=stores("train"),
        chunks=chunks("train"),
        lib=library("train_saes"),
    output:
        saes=each(f"{SAE}/cfg.json", seed=SEEDS, variant=VARIANTS, sae_seed=SAE_SEEDS),
        weights_of_saes=each(f"{SAE}/sae_weights.safetensors", seed=SEEDS, variant=VARIANTS, sae_seed=SAE_SEEDS),
        curves=f"<results>/saes/{SAE_GROUP}.curves.parquet",
    log:
        f"<results>/logs/train_saes/{SAE_GROUP}.log",
    benchmark:
        f"<results>/benchmarks/train_saes/{SAE_GROUP}.jsonl"
    conda:
        "../../envs/torch.yaml"
    threads: STUDY.compute.threads
    resources:
        mem_mb=memory(2000),
        runtime=240,
        gpu=GPU,
    params:
        cfg=settings("saes", seeds=list(SEEDS)),
    script:
        "../../scripts/train_saes.py"


rule evaluate_saes:
    input:
        dataset=IMAGES,
        weights=WEIGHTS,
        stores=stores("test"),
        chunks=chunks("test"),
        saes=rules.train_saes.output.saes,
        weights_of_saes=rules.train_saes.output.weights_of_saes,
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


rule saes:
    input:
        outputs_of(rules.train_saes, architecture=ARCHITECTURES, role=CAPTURED, hook=HOOKS),
        outputs_of(rules.evaluate_saes, architecture=ARCHITECTURES, role=CAPTURED, hook=HOOKS),
