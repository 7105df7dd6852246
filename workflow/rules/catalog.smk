# What was found: concept tests of language features, the catalog of everything, which the command line `saeflow` reads,
# and packages of language SAEs, ready to be published.

# The files that a run is read from: a table per SAE, and what lies beside it.
CATALOGUED, BESIDE = [], []
if CAPTURED:
    CATALOGUED += each(saes(f"{FEATURES}/features.parquet"), **TRAINED_AT)
    BESIDE += [FITTED, outputs_of(rules.evaluate_saes, **TRAINED_AT)]
if STUDY.injection:
    CATALOGUED += [f"{INJECTION}/tables/measures.parquet"]
PACKAGES = []


if STUDY.language and STUDY.language.saes.variants:
    # Of the SAEs of the first seed, as the features are.
    OF_FEATURES = dict(sae_seed=SPEC.saes.seeds[:1])
    SHIPPED_TEXTS = sorted(map(str, Path(workflow.basedir, "config/concepts/texts").glob("*.txt")))
    CONCEPTS = f"{TEXT_FEATURES}/concepts"
    PACKAGE = "<results>/packages/{language_model}/{hook}/{variant}"
    PACKAGED = SPEC.publish.variants or TEXT_VARIANTS

    rule test_concepts:
        input:
            model=lambda wildcards: model_files(wildcards.language_model),
            saes=each(f"{TEXT_SAE}/cfg.json", variant=TEXT_VARIANTS, **OF_FEATURES),
            weights=each(f"{TEXT_SAE}/sae_weights.safetensors", variant=TEXT_VARIANTS, **OF_FEATURES),
            texts=[*(SHIPPED_TEXTS if SPEC.concepts.shipped else []), *SPEC.concepts.files],
            lib=library("test_concepts"),
        output:
            scores=each(f"{CONCEPTS}/scores.parquet", variant=TEXT_VARIANTS),
            verdicts=each(f"{CONCEPTS}/verdicts.parquet", variant=TEXT_VARIANTS),
        log:
            "<results>/logs/test_concepts/{language_model}/{hook}.log",
        benchmark:
            "<results>/benchmarks/test_concepts/{language_model}/{hook}.jsonl"
        conda:
            "../../envs/language.yaml"
        threads: STUDY.compute.threads
        resources:
            mem_mb=memory(3000),
            runtime=60,
            gpu=GPU,
        params:
            cfg=of_hook(concepts=SPEC.concepts.model_dump(mode="json", exclude={"files"}), variants=TEXT_VARIANTS),
        script:
            "../../scripts/test_concepts.py"

    rule concepts:
        input:
            each_hook(rules.test_concepts.output.verdicts),

    LANGUAGE_RESULTS += [
        each_hook(rules.test_concepts.output.scores),
        each_hook(rules.test_concepts.output.verdicts),
    ]
    CATALOGUED += each_hook(f"{TEXT_FEATURES}/features.parquet", variant=TEXT_VARIANTS)
    BESIDE += [
        each_hook(rules.test_concepts.output.scores),
        each_hook(f"{TEXT_FEATURES}/contexts.parquet", variant=TEXT_VARIANTS),
        each_hook(f"{TEXT_FEATURES}/summary.json", variant=TEXT_VARIANTS),
        each_hook(f"{TEXT_SAE}/cfg.json", variant=TEXT_VARIANTS, **OF_FEATURES),
        each_hook(f"{TEXT_SAE}/sae_weights.safetensors", variant=TEXT_VARIANTS, **OF_FEATURES),
        each_hook(f"{TEXT_SAE}.curves.parquet", variant=TEXT_VARIANTS, **OF_FEATURES),
    ]

    rule write_package:
        input:
            saes=each(f"{TEXT_SAE}/cfg.json", variant=PACKAGED, **OF_FEATURES),
            weights=each(f"{TEXT_SAE}/sae_weights.safetensors", variant=PACKAGED, **OF_FEATURES),
            features=each(f"{TEXT_FEATURES}/features.parquet", variant=PACKAGED),
            contexts=each(f"{TEXT_FEATURES}/contexts.parquet", variant=PACKAGED),
            summaries=each(f"{TEXT_FEATURES}/summary.json", variant=PACKAGED),
            lib=library("write_package"),
        output:
            packages=[directory(folder) for folder in each(PACKAGE, variant=PACKAGED)],
            verdicts=each(f"{PACKAGE}.verification.json", variant=PACKAGED),
        log:
            "<results>/logs/write_package/{language_model}/{hook}.log",
        benchmark:
            "<results>/benchmarks/write_package/{language_model}/{hook}.jsonl"
        conda:
            "../../envs/packages.yaml"
        resources:
            mem_mb=memory(2000),
            runtime=120,
        params:
            cfg=settings(study=STUDY.study, publish=SPEC.publish.model_dump(mode="json")),
        script:
            "../../scripts/write_package.py"

    PACKAGES += each_hook(rules.write_package.output.verdicts)


rule packages:
    input:
        PACKAGES,


# Alembic finds the migrations by their folder, so that no import tells.
rule load_catalog:
    input:
        tables=CATALOGUED,
        beside=BESIDE,
        migrations=sorted(map(str, Path(workflow.basedir, "scripts/saeflow/catalog/migrations").rglob("*.py"))),
        lib=library("load_catalog"),
    output:
        catalog="<results>/catalog.sqlite",
    log:
        "<results>/logs/load_catalog.log",
    benchmark:
        "<results>/benchmarks/load_catalog.jsonl"
    conda:
        "../../envs/catalog.yaml"
    resources:
        mem_mb=memory(1000),
        runtime=60,
    params:
        cfg=settings(),
    script:
        "../../scripts/load_catalog.py"


rule catalog:
    input:
        rules.load_catalog.output if CATALOGUED else [],
