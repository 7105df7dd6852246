# Geometry of concepts: their words, their vectors in the unembedding, labelled contexts, hierarchical SAEs, steering.
GEOMETRY_SPEC = STUDY.geometry
MEASURED_MODELS = list(GEOMETRY_SPEC.models or STUDY.language.models)
GEOMETRY = "<results>/geometry/{network}"
CONCEPT_WORDS = f"{GEOMETRY}/concepts.parquet"
# Figures of each phase; without SAEs there is the first alone.
PHASES = {"phase1_teacher": ("polytopes_2d", "polytopes_3d", "angles", "membership")}
if GEOMETRY_SPEC.hierarchical:
    PHASES |= {
        "phase2_baseline": ("reconstruction",),
        "phase3_hierarchical": ("recovery",),
        "phase4_steering": ("dose_response", "steering"),
    }


def hierarchy_file():
    """The file of nouns; none for WordNet."""
    if GEOMETRY_SPEC.concepts.source == "wordnet":
        return []
    return GEOMETRY_SPEC.concepts.file or f"{workflow.basedir}/config/concepts/hierarchy.yaml"


def inner_module(wildcards):
    """The module after which vectors are added."""
    model = STUDY.language.models[wildcards.network]
    return GEOMETRY_SPEC.interventions.inner or model.hook_points[0].module


def of_geometry(*keys, settings_of=("trust_remote_code",), **more):
    """The `cfg` of a job of one model: sections of geometry, and keys of the model's section."""
    chosen = {key: getattr(GEOMETRY_SPEC, key) for key in keys}
    sections = {key: section.model_dump(mode="json") for key, section in chosen.items() if section is not None}
    return of_model(keys=settings_of, **sections, **more)


LOADED = ("trust_remote_code", "dtype", "attention", "device_map")


rule build_concepts:
    input:
        model=lambda wildcards: model_files(wildcards.network),
        hierarchy=hierarchy_file(),
        lib=library("build_concepts"),
    output:
        words=CONCEPT_WORDS,
        counts=f"{GEOMETRY}/tables/concept_counts.csv",
        prompts=f"{GEOMETRY}/prompts.parquet",
    log:
        "<results>/logs/build_concepts/{network}.log",
    benchmark:
        "<results>/benchmarks/build_concepts/{network}.jsonl"
    conda:
        "../../envs/language.yaml"
    resources:
        mem_mb=memory(2000),
        runtime=20,
    params:
        cfg=of_geometry(
            concepts=GEOMETRY_SPEC.concepts.model_dump(mode="json", exclude={"file"}),
            latents=GEOMETRY_SPEC.hierarchical and GEOMETRY_SPEC.hierarchical.latents,
        ),
    script:
        "../../scripts/build_concepts.py"


rule measure_geometry:
    input:
        model=lambda wildcards: model_files(wildcards.network),
        words=rules.build_concepts.output.words,
        lib=library("measure_geometry"),
    output:
        teacher=f"{GEOMETRY}/teacher.npz",
        verdicts=f"{GEOMETRY}/tables/phase1_verdicts.parquet",
        concepts=f"{GEOMETRY}/tables/phase1_concepts.parquet",
        angles=f"{GEOMETRY}/tables/phase1_angles.parquet",
        projections=f"{GEOMETRY}/tables/phase1_projections.parquet",
        points=f"{GEOMETRY}/tables/phase1_points.parquet",
    log:
        "<results>/logs/measure_geometry/{network}.log",
    benchmark:
        "<results>/benchmarks/measure_geometry/{network}.jsonl"
    conda:
        "../../envs/language.yaml"
    threads: STUDY.compute.threads
    resources:
        mem_mb=memory(4000),
        runtime=60,
    params:
        cfg=of_geometry("measures", settings_of=("trust_remote_code", "dtype")),
    script:
        "../../scripts/measure_geometry.py"


rule label_contexts:
    input:
        model=lambda wildcards: model_files(wildcards.network),
        tokens=each(TOKENS, split=SPLITS_OF_TEXT),
        words=rules.build_concepts.output.words,
        prompts=rules.build_concepts.output.prompts,
        lib=library("label_contexts"),
    output:
        labelled=f"{GEOMETRY}/contexts.npz",
        counts=f"{GEOMETRY}/tables/context_counts.csv",
    log:
        "<results>/logs/label_contexts/{network}.log",
    benchmark:
        "<results>/benchmarks/label_contexts/{network}.jsonl"
    conda:
        "../../envs/language.yaml"
    threads: STUDY.compute.threads
    resources:
        mem_mb=memory(4000),
        runtime=240,
        gpu=GPU,
    params:
        cfg=of_geometry("contexts", settings_of=LOADED),
    script:
        "../../scripts/label_contexts.py"


rule train_hierarchical_saes:
    input:
        labelled=rules.label_contexts.output.labelled,
        words=rules.build_concepts.output.words,
        teacher=rules.measure_geometry.output.teacher,
        lib=library("train_hierarchical_saes"),
    output:
        weights=f"{GEOMETRY}/hierarchical_saes.safetensors",
        curves=f"{GEOMETRY}/tables/training.parquet",
    log:
        "<results>/logs/train_hierarchical_saes/{network}.log",
    benchmark:
        "<results>/benchmarks/train_hierarchical_saes/{network}.jsonl"
    conda:
        "../../envs/language.yaml"
    threads: STUDY.compute.threads
    resources:
        mem_mb=memory(3000),
        runtime=720,
        gpu=GPU,
    params:
        cfg=of_geometry("hierarchical", settings_of=()),
    script:
        "../../scripts/train_hierarchical_saes.py"


rule evaluate_hierarchical_saes:
    input:
        labelled=rules.label_contexts.output.labelled,
        words=rules.build_concepts.output.words,
        teacher=rules.measure_geometry.output.teacher,
        weights=rules.train_hierarchical_saes.output.weights,
        lib=library("evaluate_hierarchical_saes"),
    output:
        metrics=f"{GEOMETRY}/tables/arms.parquet",
        concepts=f"{GEOMETRY}/tables/arms_concepts.parquet",
        verdicts=f"{GEOMETRY}/tables/arms_verdicts.parquet",
    log:
        "<results>/logs/evaluate_hierarchical_saes/{network}.log",
    benchmark:
        "<results>/benchmarks/evaluate_hierarchical_saes/{network}.jsonl"
    conda:
        "../../envs/language.yaml"
    threads: STUDY.compute.threads
    resources:
        mem_mb=memory(3000),
        runtime=240,
    params:
        cfg=of_geometry("hierarchical", settings_of=(), bootstrap=GEOMETRY_SPEC.measures.bootstrap),
    script:
        "../../scripts/evaluate_hierarchical_saes.py"


rule intervene:
    input:
        model=lambda wildcards: model_files(wildcards.network),
        tokens=TOKENS.replace("{split}", "held_out"),
        words=rules.build_concepts.output.words,
        teacher=rules.measure_geometry.output.teacher,
        labelled=rules.label_contexts.output.labelled,
        checked=lambda wildcards: checked(wildcards.network, "geometry"),
        lib=library("intervene"),
    output:
        effects=f"{GEOMETRY}/tables/interventions.parquet",
        verdicts=f"{GEOMETRY}/tables/interventions_verdicts.parquet",
    log:
        "<results>/logs/intervene/{network}.log",
    benchmark:
        "<results>/benchmarks/intervene/{network}.jsonl"
    conda:
        "../../envs/language.yaml"
    threads: STUDY.compute.threads
    resources:
        mem_mb=memory(4000),
        runtime=120,
        gpu=GPU,
    params:
        cfg=lambda wildcards: of_geometry(
            "interventions",
            settings_of=LOADED,
            inner=inner_module(wildcards),
            bootstrap=GEOMETRY_SPEC.measures.bootstrap,
        )(wildcards),
    script:
        "../../scripts/intervene.py"


GEOMETRY_TABLES = {
    "phase1_teacher": [
        getattr(rules.measure_geometry.output, name)
        for name in ("verdicts", "concepts", "angles", "projections", "points")
    ],
    "phase2_baseline": [rules.evaluate_hierarchical_saes.output.metrics],
    "phase3_hierarchical": [
        rules.evaluate_hierarchical_saes.output.metrics,
        rules.evaluate_hierarchical_saes.output.verdicts,
    ],
    "phase4_steering": [
        rules.evaluate_hierarchical_saes.output.metrics,
        rules.evaluate_hierarchical_saes.output.verdicts,
        rules.intervene.output.effects,
        rules.intervene.output.verdicts,
    ],
}
GEOMETRY_COUNTS = {
    "phase1_teacher": [rules.build_concepts.output.counts],
    "phase2_baseline": [rules.label_contexts.output.counts],
}
GEOMETRY_DRAWN = []

# A rule per phase, so that one phase waits for nothing that it does not show.
for phase, figures_of_phase in PHASES.items():
    DRAWN = {
        ending: each(f"{GEOMETRY}/figures/{{figure}}.{ending}", figure=figures_of_phase) for ending in ("png", "svg")
    }
    WRITTEN = [f"{GEOMETRY}/{phase}.md", f"{GEOMETRY}/tables/{phase}.csv"]
    GEOMETRY_DRAWN += [*DRAWN["png"], *DRAWN["svg"], *WRITTEN]

    rule:
        name:
            f"draw_{phase}"
        input:
            tables=GEOMETRY_TABLES[phase],
            lib=library("draw_geometry_figures"),
        output:
            png=report(DRAWN["png"], caption="../report/geometry_figure.rst", category="Geometry"),
            svg=DRAWN["svg"],
        log:
            f"<results>/logs/draw_{phase}/{{network}}.log",
        benchmark:
            f"<results>/benchmarks/draw_{phase}/{{network}}.jsonl"
        conda:
            "../../envs/publish.yaml"
        resources:
            mem_mb=memory(1000),
            runtime=10,
        params:
            cfg=settings(),
        script:
            "../../scripts/draw_geometry_figures.py"

    rule:
        name:
            f"write_{phase}"
        input:
            tables=GEOMETRY_TABLES[phase],
            counts=GEOMETRY_COUNTS.get(phase, []),
            figures=DRAWN["svg"],
            lib=library("write_geometry_report"),
        output:
            text=report(WRITTEN[0], caption="../report/geometry_report.rst", category="Geometry"),
            csv=WRITTEN[1],
        log:
            f"<results>/logs/write_{phase}/{{network}}.log",
        benchmark:
            f"<results>/benchmarks/write_{phase}/{{network}}.jsonl"
        conda:
            "../../envs/publish.yaml"
        resources:
            mem_mb=memory(500),
            runtime=10,
        params:
            cfg=settings(
                study=STUDY.study,
                geometry=GEOMETRY_SPEC.model_dump(mode="json", exclude={"concepts": {"file"}}),
            ),
        script:
            "../../scripts/write_geometry_report.py"

    rule:
        name:
            f"geometry/{phase}"
        input:
            each(WRITTEN, network=MEASURED_MODELS),


GEOMETRY_FILES = [
    rules.build_concepts.output,
    rules.measure_geometry.output,
    GEOMETRY_DRAWN,
]
if GEOMETRY_SPEC.hierarchical:
    GEOMETRY_FILES += [
        rules.label_contexts.output,
        rules.train_hierarchical_saes.output,
        rules.evaluate_hierarchical_saes.output,
        rules.intervene.output,
    ]
SHOWN_TABLES = ["phase1_verdicts", "phase1_points"]
if GEOMETRY_SPEC.hierarchical:
    SHOWN_TABLES += ["arms", "arms_verdicts", "interventions"]
GEOMETRY_SHOWN += each(f"{GEOMETRY}/tables/{{table}}.parquet", network=MEASURED_MODELS, table=SHOWN_TABLES)
GEOMETRY_RESULTS += [each(path, network=MEASURED_MODELS) for files in GEOMETRY_FILES for path in files]


rule geometry:
    input:
        GEOMETRY_RESULTS,
