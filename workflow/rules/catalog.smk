# What was found: concept tests of language features, the catalog of everything, which the command line `saeflow` reads,
# and packages of language SAEs, ready to be published.

# The files that a run is read from: a table per SAE, and what lies beside it.
CATALOGUED, BESIDE = [], []
for fitted in FITTED:
    CATALOGUED += fitted.everywhere(fitted.features(plan.FEATURE_FILES[fitted.reads][0]))
if OF_IMAGES:
    BESIDE += [
        *(OF_IMAGES.everywhere(OF_IMAGES.each(end)) for end in plan.SAE_FILES),
        OF_IMAGES.everywhere([OF_IMAGES.metrics]),
    ]
if STUDY.injection:
    CATALOGUED += [f"{INJECTION}/tables/measures.parquet"]
PACKAGES = []


if OF_TEXTS:
    # Of the SAEs of the first seed, as the features are.
    ANALYZED_SEEDS = OF_TEXTS.feature_seeds
    SHIPPED_TEXTS = sorted(map(str, Path(workflow.basedir, "config/concepts/texts").glob("*.txt")))
    CONCEPTS = f"{TEXT_FEATURES}/concepts"
    PACKAGE = "<results>/packages/{network}/{hook}/{variant}"
    PACKAGED = STUDY.language.publish.variants or OF_TEXTS.variants

    rule test_concepts:
        input:
            model=lambda wildcards: model_files(wildcards.network),
            saes=OF_TEXTS.each("cfg.json", ANALYZED_SEEDS),
            weights=OF_TEXTS.each("sae_weights.safetensors", ANALYZED_SEEDS),
            texts=[*(SHIPPED_TEXTS if STUDY.language.concepts.shipped else []), *STUDY.language.concepts.files],
            lib=library("test_concepts"),
        output:
            scores=each(f"{CONCEPTS}/scores.parquet", variant=OF_TEXTS.variants),
            verdicts=each(f"{CONCEPTS}/verdicts.parquet", variant=OF_TEXTS.variants),
        log:
            "<results>/logs/test_concepts/{network}/{hook}.log",
        benchmark:
            "<results>/benchmarks/test_concepts/{network}/{hook}.jsonl"
        conda:
            "../../envs/language.yaml"
        threads: STUDY.compute.threads
        resources:
            mem_mb=memory(3000),
            runtime=60,
            gpu=GPU,
        params:
            cfg=of_hook(
                concepts=STUDY.language.concepts.model_dump(mode="json", exclude={"files"}), variants=OF_TEXTS.variants
            ),
        script:
            "../../scripts/test_concepts.py"

    rule concepts:
        input:
            each_hook(rules.test_concepts.output.verdicts),

    LANGUAGE_RESULTS += [
        each_hook(rules.test_concepts.output.scores),
        each_hook(rules.test_concepts.output.verdicts),
    ]
    BESIDE += [
        each_hook(rules.test_concepts.output.scores),
        *(OF_TEXTS.everywhere(OF_TEXTS.features(file)) for file in ("contexts.parquet", "summary.json")),
        *(OF_TEXTS.everywhere(OF_TEXTS.each(end, ANALYZED_SEEDS)) for end in plan.SAE_FILES),
    ]

    rule write_package:
        input:
            saes=OF_TEXTS.each("cfg.json", ANALYZED_SEEDS, PACKAGED),
            weights=OF_TEXTS.each("sae_weights.safetensors", ANALYZED_SEEDS, PACKAGED),
            features=OF_TEXTS.features("features.parquet", PACKAGED),
            contexts=OF_TEXTS.features("contexts.parquet", PACKAGED),
            summaries=OF_TEXTS.features("summary.json", PACKAGED),
            lib=library("write_package"),
        output:
            packages=[directory(folder) for folder in each(PACKAGE, variant=PACKAGED)],
            verdicts=each(f"{PACKAGE}.verification.json", variant=PACKAGED),
        log:
            "<results>/logs/write_package/{network}/{hook}.log",
        benchmark:
            "<results>/benchmarks/write_package/{network}/{hook}.jsonl"
        conda:
            "../../envs/packages.yaml"
        resources:
            mem_mb=memory(2000),
            runtime=120,
        params:
            cfg=settings(study=STUDY.study, publish=STUDY.language.publish.model_dump(mode="json")),
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
