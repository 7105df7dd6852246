# Feature analysis: all features of all SAEs on one hook point of a network in one job.
for fitted in FITTED:
    table, *beside = plan.FEATURE_FILES[fitted.reads]
    # Images are looked at in both splits; of text, the training split alone, with the losses of the text held out.
    of_images = fitted.reads == "images"
    trained_on, held_out = fitted.splits

    rule:
        name:
            f"analyze_features{fitted.suffix}"
        input:
            network=lambda wildcards: network_files(wildcards.network),
            given=[IMAGES] if of_images else [],
            train_stores=fitted.manifests(trained_on),
            train_chunks=map(ancient, fitted.parts(trained_on)),
            held_out_stores=fitted.manifests(held_out) if of_images else [],
            held_out_chunks=map(ancient, fitted.parts(held_out) if of_images else []),
            metrics=[] if of_images else [fitted.metrics],
            saes=fitted.each("cfg.json", fitted.feature_seeds),
            weights=fitted.each("sae_weights.safetensors", fitted.feature_seeds),
            lib=library("analyze_features", fitted.reads),
        output:
            features=fitted.features(table),
            beside=[path for file in beside for path in fitted.features(file)],
        log:
            f"<results>/logs/analyze_features{fitted.suffix}/{{network}}/{{hook}}.log",
        benchmark:
            f"<results>/benchmarks/analyze_features{fitted.suffix}/{{network}}/{{hook}}.jsonl"
        wildcard_constraints:
            network="|".join(fitted.networks),
        conda:
            f"../../envs/{fitted.environment}.yaml"
        threads: STUDY.compute.threads
        resources:
            mem_mb=memory(4000),
            runtime=480,
            gpu=GPU,
        params:
            cfg=of_saes(
                fitted,
                "section",
                reads=fitted.reads,
                splits=list(fitted.splits),
                variants=fitted.variants,
                sae_seeds=list(fitted.feature_seeds),
                **fitted.analysis,
                **fitted.stacked,
            ),
        script:
            "../../scripts/analyze_features.py"


ANALYZED = [
    path
    for fitted in FITTED
    for file in plan.FEATURE_FILES[fitted.reads]
    for path in fitted.everywhere(fitted.features(file))
]


CARDS_OF = "<results>/features/{network}-s{seed}/{hook}/{variant}-s{sae_seed}"


rule draw_feature_cards:
    input:
        dataset=IMAGES,
        arrays=f"{CARDS_OF}/features.npz",
        table=f"{CARDS_OF}/features.parquet",
        lib=library("draw_feature_cards"),
    output:
        cards=directory(f"{CARDS_OF}/cards"),
        gallery=report(
            f"{CARDS_OF}/gallery.png",
            caption="../report/gallery.rst",
            category="Features",
            labels={"network": "{network}", "SAE": "{variant}", "figure": "gallery"},
        ),
    log:
        "<results>/logs/draw_feature_cards/{network}-s{seed}/{hook}/{variant}-s{sae_seed}.log",
    benchmark:
        "<results>/benchmarks/draw_feature_cards/{network}-s{seed}/{hook}/{variant}-s{sae_seed}.jsonl"
    conda:
        "../../envs/publish.yaml"
    resources:
        mem_mb=memory(1000),
        runtime=30,
    params:
        cfg=settings("features"),
    script:
        "../../scripts/draw_feature_cards.py"


GALLERIES = []
if OF_IMAGES:
    cards = STUDY.features.cards
    GALLERIES = OF_IMAGES.everywhere(
        outputs_of(rules.draw_feature_cards, seed=cards.seeds, variant=cards.variants, sae_seed=STUDY.saes.seeds[:1])
    )


rule features:
    input:
        ANALYZED,
        GALLERIES,
