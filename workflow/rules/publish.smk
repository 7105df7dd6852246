# What readers see: tables, figures drawn from the tables alone, the report, the digests of everything, and the crate.
import snakemake

from saeflow.config.paths import files_of, without_files
from saeflow.publish.crate_layout import project_files

# What the report says of the config: not where the files lie, in how many jobs they were made, or what the study is
# compared with.
SHOWN = STUDY.model_dump(
    mode="json",
    exclude={
        "reference": True,
        "verify": True,
        "dataset": {"data_dir"},
        "activations": {"shards"},
        "saes": {"shards"},
        **UNSEEN_OF_LANGUAGE,
    },
)
# What the crate says of it: all but paths of this machine, for which whoever rebuilds it has others.
NAMED = files_of(STUDY)
CRATED = without_files(STUDY)
TABLES = ["classifiers"]
FIGURES = ["classifiers"]
# Filled by the rules below; a study of language models alone has tables of its own.
GATHERED, DRAWN = [], []
if CAPTURED:
    TABLES += ["saes", "saes_summary", "training", "features", "features_summary"]
    FIGURES += ["sae_quality", "sae_training", "feature_rates", "hypotheses"]


if ARCHITECTURES:

    rule gather_tables:
        input:
            sidecars=each(
                "<results>/models/{dataset}/{architecture}/{role}.json",
                dataset=DATASET,
                architecture=ARCHITECTURES,
                role=ROLES,
            ),
            metrics=outputs_of(rules.evaluate_saes, **TRAINED_AT),
            curves=each(saes(SAE_CURVES), **TRAINED_AT),
            features=each(
                f"{FEATURES}/features.parquet",
                **TRAINED_AT,
                seed=SEEDS,
                variant=VARIANTS,
                sae_seed=SAE_SEEDS,
            ),
            lib=library("gather_tables"),
        output:
            parquet=each("<results>/tables/{table}.parquet", table=TABLES),
            csv=report(
                each("<results>/tables/{table}.csv", table=TABLES),
                caption="../report/table.rst",
                category="Tables",
            ),
        log:
            "<results>/logs/gather_tables.log",
        benchmark:
            "<results>/benchmarks/gather_tables.jsonl"
        conda:
            "../../envs/publish.yaml"
        resources:
            mem_mb=memory(1000),
            runtime=10,
        params:
            cfg=settings(),
        script:
            "../../scripts/gather_tables.py"

    rule draw_figures:
        input:
            tables=rules.gather_tables.output.parquet,
            lib=library("draw_figures"),
        output:
            png=report(
                each("<results>/figures/{figure}.png", figure=FIGURES),
                caption="../report/figure.rst",
                category="Figures",
            ),
            svg=each("<results>/figures/{figure}.svg", figure=FIGURES),
        log:
            "<results>/logs/draw_figures.log",
        benchmark:
            "<results>/benchmarks/draw_figures.jsonl"
        conda:
            "../../envs/publish.yaml"
        resources:
            mem_mb=memory(1000),
            runtime=10,
        params:
            cfg=settings(),
        script:
            "../../scripts/draw_figures.py"

    GATHERED += rules.gather_tables.output
    DRAWN += rules.draw_figures.output


rule figures:
    input:
        DRAWN,
        GALLERIES,


rule write_report:
    input:
        tables=rules.gather_tables.output.parquet if ARCHITECTURES else [],
        figures=rules.draw_figures.output.svg if ARCHITECTURES else [],
        galleries=GALLERIES,
        injection=INJECTION_REPORTED,
        language=LANGUAGE_REPORTED,
        lib=library("write_report"),
    output:
        report=report("<results>/report.html", caption="../report/report.rst", category="Report"),
    log:
        "<results>/logs/write_report.log",
    benchmark:
        "<results>/benchmarks/write_report.jsonl"
    conda:
        "../../envs/publish.yaml"
    resources:
        mem_mb=memory(500),
        runtime=10,
    params:
        cfg=settings(study=SHOWN),
    script:
        "../../scripts/write_report.py"


rule report:
    input:
        rules.write_report.output,


SITE = "<results>/site"
PAGES = ["index", "run"]
EXPLORED = bool(CAPTURED or LANGUAGE_REPORTED)
if EXPLORED:
    PAGES += ["features", "feature"]
if STUDY.injection:
    PAGES += ["injection"]
if INVERSION_SHOWN:
    PAGES += ["inversion"]
if GEOMETRY_SHOWN:
    PAGES += ["geometry"]


rule write_site:
    input:
        tables=each(
            "<results>/tables/{table}.parquet",
            table=[name for name in ("classifiers", "saes", "features_summary") if name in TABLES and ARCHITECTURES],
        ),
        language=LANGUAGE_REPORTED,
        injection=each(
            f"{INJECTION}/tables/{{table}}.parquet",
            table=("summary", "pairs", "curve", "confusion", "examples") if STUDY.injection else (),
        ),
        images=IMAGES if STUDY.injection else [],
        inversion=INVERSION_SHOWN,
        geometry=GEOMETRY_SHOWN,
        files=site_files(),
        lib=library("write_site"),
    output:
        index=f"{SITE}/index.html",
        pages=each(f"{SITE}/{{page}}.html", page=PAGES[1:]),
        assets=directory(f"{SITE}/assets"),
        data=[f"{SITE}/{page}.js" for page in ("injection", "inversion", "geometry") if page in PAGES],
    log:
        "<results>/logs/write_site.log",
    benchmark:
        "<results>/benchmarks/write_site.jsonl"
    conda:
        "../../envs/publish.yaml"
    resources:
        mem_mb=memory(500),
        runtime=10,
    params:
        cfg=settings(study=SHOWN),
    script:
        "../../scripts/write_site.py"


rule write_site_features:
    input:
        dataset=IMAGES if CAPTURED else [],
        tables=each(
            f"{FEATURES}/features.parquet",
            **TRAINED_AT,
            seed=SEEDS,
            variant=VARIANTS,
            sae_seed=SAE_SEEDS,
        ),
        arrays=each(
            f"{FEATURES}/features.npz",
            **TRAINED_AT,
            seed=SEEDS,
            variant=VARIANTS,
            sae_seed=SAE_SEEDS,
        ),
        texts=TEXT_FEATURES_SHOWN.get("features.parquet", []),
        contexts=TEXT_FEATURES_SHOWN.get("contexts.parquet", []),
        summaries=TEXT_FEATURES_SHOWN.get("summary.json", []),
        concepts=TEXT_FEATURES_SHOWN.get("concepts/scores.parquet", []),
        inversion=INVERSION_SHOWN,
        lib=library("write_site_features"),
    output:
        folder=directory(f"{SITE}/features"),
    log:
        "<results>/logs/write_site_features.log",
    benchmark:
        "<results>/benchmarks/write_site_features.jsonl"
    conda:
        "../../envs/publish.yaml"
    resources:
        mem_mb=memory(2000),
        runtime=30,
    params:
        cfg=settings(),
    script:
        "../../scripts/write_site_features.py"


# Everything that the study shows; logs, benchmarks and the verdict carry times and stay out.
RESULTS = [
    rules.datasets.input if ARCHITECTURES else [],
    rules.models.input,
    STORES,
    FITTED,
    outputs_of(rules.evaluate_saes, **TRAINED_AT),
    outputs_of(rules.analyze_features, **TRAINED_AT),
    GALLERIES,
    INJECTION_RESULTS,
    LANGUAGE_RESULTS,
    GEOMETRY_RESULTS,
    GATHERED,
    DRAWN,
    rules.write_report.output,
    rules.write_site.output,
    rules.write_site_features.output if EXPLORED else [],
]


rule write_manifest:
    input:
        results=RESULTS,
        lib=library("write_manifest"),
    output:
        manifest="<results>/MANIFEST.sha256",
    log:
        "<results>/logs/write_manifest.log",
    benchmark:
        "<results>/benchmarks/write_manifest.jsonl"
    conda:
        "../../envs/data.yaml"
    resources:
        mem_mb=memory(500),
        runtime=30,
    params:
        cfg=settings(),
    script:
        "../../scripts/write_manifest.py"


rule verify:
    input:
        manifest=rules.write_manifest.output.manifest,
        reference=STUDY.reference or [],
        lib=library("verify_study"),
    output:
        verdict="<results>/verification.txt",
    log:
        "<results>/logs/verify.log",
    benchmark:
        "<results>/benchmarks/verify.jsonl"
    conda:
        "../../envs/publish.yaml"
    resources:
        mem_mb=memory(500),
        runtime=10,
    params:
        cfg=settings("verify", reference=STUDY.reference),
    script:
        "../../scripts/verify_study.py"


# Last, because it tells what the others cost; its data differ at each run and are no result.
rule write_site_run:
    input:
        manifest=rules.write_manifest.output.manifest,
        lib=library("write_site_run"),
    output:
        page_data=f"{SITE}/run_data.js",
    log:
        "<results>/logs/write_site_run.log",
    benchmark:
        "<results>/benchmarks/write_site_run.jsonl"
    conda:
        "../../envs/publish.yaml"
    resources:
        mem_mb=memory(500),
        runtime=10,
    params:
        cfg=settings(metadata=".snakemake/metadata"),
    script:
        "../../scripts/write_site_run.py"


rule site:
    input:
        rules.write_site.output,
        rules.write_site_features.output if EXPLORED else [],
        rules.write_site_run.output,


rule write_crate:
    input:
        manifest=rules.write_manifest.output.manifest,
        project=lambda _: [f"{workflow.basedir}/{name}" for name in project_files(Path(workflow.basedir))],
        lib=library("write_crate"),
    output:
        crate="<results>.crate.zip",
    log:
        "<results>/logs/write_crate.log",
    benchmark:
        "<results>/benchmarks/write_crate.jsonl"
    conda:
        "../../envs/publish.yaml"
    resources:
        mem_mb=memory(500),
        runtime=30,
    params:
        cfg=settings(study=CRATED, files=NAMED, snakemake=snakemake.__version__),
    script:
        "../../scripts/write_crate.py"


rule crate:
    input:
        rules.write_crate.output,
