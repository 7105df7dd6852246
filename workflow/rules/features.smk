# Feature analysis: all latents of all SAEs of one architecture, role and hook point in one job.


rule analyze_features:
    input:
        dataset=IMAGES,
        weights=WEIGHTS,
        train_stores=stores("train"),
        train_chunks=chunks("train"),
        test_stores=stores("test"),
        test_chunks=chunks("test"),
        saes=saes(SAE_CONFIG),
        weights_of_saes=saes(SAE_WEIGHTS),
        lib=library("analyze_features"),
    output:
        tables=each(f"{FEATURES}/features.parquet", seed=SEEDS, variant=VARIANTS, sae_seed=SAE_SEEDS),
        reports=each(f"{FEATURES}/feature_report.json", seed=SEEDS, variant=VARIANTS, sae_seed=SAE_SEEDS),
        arrays=each(f"{FEATURES}/features.npz", seed=SEEDS, variant=VARIANTS, sae_seed=SAE_SEEDS),
    log:
        f"<results>/logs/analyze_features/{SAE_GROUP}.log",
    benchmark:
        f"<results>/benchmarks/analyze_features/{SAE_GROUP}.jsonl"
    conda:
        "../../envs/torch.yaml"
    threads: STUDY.compute.threads
    resources:
        mem_mb=memory(3000),
        runtime=120,
        gpu=GPU,
    params:
        cfg=settings("features", seeds=list(SEEDS), variants=list(VARIANTS), sae_seeds=list(SAE_SEEDS)),
    script:
        "../../scripts/analyze_features.py"


rule draw_feature_cards:
    input:
        dataset=IMAGES,
        arrays=f"{FEATURES}/features.npz",
        table=f"{FEATURES}/features.parquet",
        lib=library("draw_feature_cards"),
    output:
        cards=directory(f"{FEATURES}/cards"),
        gallery=report(
            f"{FEATURES}/gallery.png",
            caption="../report/gallery.rst",
            category="Features",
            labels={"architecture": "{architecture}", "SAE": "{variant}", "figure": "gallery"},
        ),
    log:
        "<results>/logs/draw_feature_cards/{architecture}-{role}-s{seed}/{hook}/{variant}-s{sae_seed}.log",
    benchmark:
        "<results>/benchmarks/draw_feature_cards/{architecture}-{role}-s{seed}/{hook}/{variant}-s{sae_seed}.jsonl"
    conda:
        "../../envs/publish.yaml"
    resources:
        mem_mb=memory(1000),
        runtime=30,
    params:
        cfg=settings("features"),
    script:
        "../../scripts/draw_feature_cards.py"


GALLERIES = outputs_of(
    rules.draw_feature_cards,
    architecture=ARCHITECTURES,
    role=CAPTURED,
    hook=HOOKS,
    seed=STUDY.features.cards.seeds,
    variant=STUDY.features.cards.variants,
    sae_seed=SAE_SEEDS[:1],
)


rule features:
    input:
        outputs_of(rules.analyze_features, architecture=ARCHITECTURES, role=CAPTURED, hook=HOOKS),
        GALLERIES,
