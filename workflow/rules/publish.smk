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
# Tables by kind of input: the rule's suffix, folder, category, what is gathered and what the features are read from.
GATHERED_FROM = {}
if ARCHITECTURES:
    TABLES = ["classifiers"]
    if OF_IMAGES:
        TABLES += ["saes", "saes_summary", "training", "features", "features_summary"]
    GATHERED_FROM["images"] = ("", "<results>/tables", "Tables", OF_IMAGES, "features.parquet", TABLES)
if OF_TEXTS:
    OF_LANGUAGE = ["saes", "saes_summary", "training", "features_summary"]
    GATHERED_FROM["texts"] = ("_language", f"{LANGUAGE}/tables", "Language", OF_TEXTS, "summary.json", OF_LANGUAGE)
# Filled by the rules below; a study of language models alone has tables of its own.
GATHERED, DRAWN, REPORTED = [], [], {}

for reads, (suffix, folder, category, fitted, analyzed, names) in GATHERED_FROM.items():
    exact = [f"{folder}/{name}.parquet" for name in names]
    readable = [f"{folder}/{name}.csv" for name in names]

    rule:
        name:
            f"gather_tables{suffix}"
        input:
            sidecars=SIDECARS if reads == "images" else [],
            metrics=fitted.everywhere([fitted.metrics]) if fitted else [],
            curves=fitted.everywhere(fitted.each(".curves.parquet")) if fitted else [],
            features=fitted.everywhere(fitted.features(analyzed)) if fitted else [],
            lib=library("gather_tables"),
        output:
            parquet=exact,
            csv=report(readable, caption="../report/table.rst", category=category),
        log:
            f"<results>/logs/gather_tables{suffix}.log",
        benchmark:
            f"<results>/benchmarks/gather_tables{suffix}.jsonl"
        conda:
            "../../envs/publish.yaml"
        resources:
            mem_mb=memory(1000),
            runtime=10,
        params:
            cfg=settings(reads=reads),
        script:
            "../../scripts/gather_tables.py"

    GATHERED += [*exact, *readable]
    REPORTED[reads] = exact


if TEXT:

    rule language:
        input:
            LANGUAGE_RESULTS,
            [path for path in (*STORES, *TRAINED, *EVALUATED, *ANALYZED, *GATHERED) if path.startswith(LANGUAGE)],


FIGURES = ["classifiers"]
if OF_IMAGES:
    FIGURES += ["sae_quality", "sae_training", "feature_rates", "hypotheses"]

if ARCHITECTURES:

    rule draw_figures:
        input:
            tables=REPORTED["images"],
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

    DRAWN += rules.draw_figures.output


rule figures:
    input:
        DRAWN,
        GALLERIES,


rule write_report:
    input:
        tables=REPORTED.get("images", []),
        figures=rules.draw_figures.output.svg if ARCHITECTURES else [],
        galleries=GALLERIES,
        injection=INJECTION_REPORTED,
        language=REPORTED.get("texts", []),
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
EXPLORED = bool(FITTED)
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
        tables=[
            path
            for path in REPORTED.get("images", [])
            if Path(path).stem in ("classifiers", "saes", "features_summary")
        ],
        language=REPORTED.get("texts", []),
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
        dataset=IMAGES if OF_IMAGES else [],
        tables=features_of(OF_IMAGES, "features.parquet"),
        arrays=features_of(OF_IMAGES, "features.npz"),
        texts=features_of(OF_TEXTS, "features.parquet"),
        contexts=features_of(OF_TEXTS, "contexts.parquet"),
        summaries=features_of(OF_TEXTS, "summary.json"),
        concepts=features_of(OF_TEXTS, "concepts/scores.parquet"),
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
    IMAGES if ARCHITECTURES else [],
    CLASSIFIERS,
    STORES,
    TRAINED,
    EVALUATED,
    ANALYZED,
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
