# Concept injection: the SAEs that methods share, one job per method, then tables, figures and the report of them all.
from itertools import product

SPEC = STUDY.injection
# Networks that methods can reach; those named first have concept SAEs.
PAIRED = list(filter(None, (SPEC.source, SPEC.target, SPEC.blind)))
REACHABLE = list(dict.fromkeys([*PAIRED, *SPEC.sequence.values()]))
PAIRS = list(map(list, SPEC.pairs or product(ARCHITECTURES, repeat=2)))
# What a method's rows depend on, not on which other methods run; what the SAEs and the captured values depend on.
PROTOCOL = SPEC.model_dump(mode="json", exclude={"methods"})
SPACES = {name: PROTOCOL[name] for name in ("target", "source", "blind", "concept", "lookalike", "concept_spaces")}
VALUES = {name: PROTOCOL[name] for name in (*SPACES, "sequence", "synthetic_images") if name != "concept_spaces"}
METHOD_ROWS = f"{INJECTION}/methods/{{method}}"
METHOD_FILES = ("measures", "curve", "intervals", "confusion", "examples", "about")
# Those that take longest start first, so that none runs on alone at the end.
LONGEST = ("fragment_distillation", "adversarial_direction", "references")
INJECTION_TABLES = ("summary", "pairs", "controls", "curve", "pareto", "sweeps", "stages", "confusion", "examples")
INJECTION_FIGURES = ["pairs", "tradeoff", "curves", "controls"]
if {"dimension_scaling", "sparsity_optimisation"} & set(SPEC.methods):
    INJECTION_FIGURES.append("sweeps")
if "continual_injection" in SPEC.methods:
    INJECTION_FIGURES.append("forgetting")
# Files under the names of the project's first scripts, and the method whose rows each holds.
OLDER_NAMES = {
    "method1_comprehensive_results": "precomputed_alignment",
    "method2_comprehensive_results": "neural_aligner",
}
OLDER_NAMES = {name: method for name, method in OLDER_NAMES.items() if method in SPEC.methods}


wildcard_constraints:
    method="|".join(METHODS),


rule train_concept_saes:
    input:
        dataset=IMAGES,
        weights=each(WEIGHTS, architecture=ARCHITECTURES, role=PAIRED),
        lib=library("train_concept_saes"),
    output:
        saes=f"{INJECTION}/concept_saes.safetensors",
    log:
        "<results>/logs/train_concept_saes.log",
    benchmark:
        "<results>/benchmarks/train_concept_saes.jsonl"
    priority: 1
    conda:
        "../../envs/torch.yaml"
    threads: STUDY.compute.threads
    resources:
        mem_mb=memory(3000),
        runtime=120,
        gpu=GPU,
    params:
        cfg=settings("classifiers", injection=SPACES),
    script:
        "../../scripts/train_concept_saes.py"


rule capture_injection:
    input:
        dataset=IMAGES,
        weights=each(WEIGHTS, architecture=ARCHITECTURES, role=REACHABLE),
        lib=library("capture_injection"),
    output:
        values=f"{INJECTION}/values.safetensors",
    log:
        "<results>/logs/capture_injection.log",
    benchmark:
        "<results>/benchmarks/capture_injection.jsonl"
    priority: 2
    conda:
        "../../envs/torch.yaml"
    threads: STUDY.compute.threads
    resources:
        mem_mb=memory(4000),
        runtime=60,
        gpu=GPU,
    params:
        cfg=settings("classifiers", injection=VALUES),
    script:
        "../../scripts/capture_injection.py"


rule inject:
    input:
        dataset=IMAGES,
        weights=each(WEIGHTS, architecture=ARCHITECTURES, role=REACHABLE),
        values=rules.capture_injection.output.values,
        saes=saes_of,
        lib=library("inject"),
        code=method_library,
    output:
        measures=f"{METHOD_ROWS}.parquet",
        curve=f"{METHOD_ROWS}.curve.parquet",
        intervals=f"{METHOD_ROWS}.intervals.parquet",
        confusion=f"{METHOD_ROWS}.confusion.parquet",
        examples=f"{METHOD_ROWS}.examples.parquet",
        about=f"{METHOD_ROWS}.json",
        seconds="<results>/benchmarks/injection/{method}.seconds.csv",
    log:
        "<results>/logs/inject/{method}.log",
    benchmark:
        "<results>/benchmarks/inject/{method}.jsonl"
    priority: lambda wildcards: int(wildcards.method in LONGEST)
    conda:
        "../../envs/torch.yaml"
    threads: STUDY.compute.threads
    resources:
        mem_mb=memory(4000),
        runtime=120,
        gpu=GPU,
    params:
        cfg=settings("classifiers", injection=PROTOCOL, pairs=PAIRS),
    script:
        "../../scripts/inject.py"


rule gather_injection:
    input:
        measures=each(rules.inject.output.measures, method=SPEC.methods),
        curves=each(rules.inject.output.curve, method=SPEC.methods),
        intervals=each(rules.inject.output.intervals, method=SPEC.methods),
        confusions=each(rules.inject.output.confusion, method=SPEC.methods),
        examples=each(rules.inject.output.examples, method=SPEC.methods),
        about=each(rules.inject.output.about, method=SPEC.methods),
        lib=library("gather_injection"),
    output:
        parquet=each(f"{INJECTION}/tables/{{table}}.parquet", table=("measures", *INJECTION_TABLES)),
        csv=report(
            each(f"{INJECTION}/tables/{{table}}.csv", table=INJECTION_TABLES),
            caption="../report/injection_table.rst",
            category="Injection",
        ),
    log:
        "<results>/logs/gather_injection.log",
    benchmark:
        "<results>/benchmarks/gather_injection.jsonl"
    conda:
        "../../envs/publish.yaml"
    resources:
        mem_mb=memory(1000),
        runtime=10,
    params:
        cfg=settings("classifiers", "injection", dataset=DATASET),
    script:
        "../../scripts/gather_injection.py"


rule draw_injection_figures:
    input:
        tables=rules.gather_injection.output.parquet,
        lib=library("draw_injection_figures"),
    output:
        png=report(
            each(f"{INJECTION}/figures/{{figure}}.png", figure=INJECTION_FIGURES),
            caption="../report/injection_figure.rst",
            category="Injection",
        ),
        svg=each(f"{INJECTION}/figures/{{figure}}.svg", figure=INJECTION_FIGURES),
    log:
        "<results>/logs/draw_injection_figures.log",
    benchmark:
        "<results>/benchmarks/draw_injection_figures.jsonl"
    conda:
        "../../envs/publish.yaml"
    resources:
        mem_mb=memory(1000),
        runtime=10,
    params:
        cfg=settings(),
    script:
        "../../scripts/draw_injection_figures.py"


rule write_injection_report:
    input:
        tables=rules.gather_injection.output.parquet,
        figures=rules.draw_injection_figures.output.svg,
        about=each(rules.inject.output.about, method=SPEC.methods),
        lib=library("write_injection_report"),
    output:
        report=report(f"{INJECTION}/report.md", caption="../report/injection_report.rst", category="Injection"),
        older=f"{INJECTION}/EXPERIMENT_REPORT.md",
    log:
        "<results>/logs/write_injection_report.log",
    benchmark:
        "<results>/benchmarks/write_injection_report.jsonl"
    conda:
        "../../envs/publish.yaml"
    resources:
        mem_mb=memory(500),
        runtime=10,
    params:
        cfg=settings("study", "classifiers", "injection", dataset=DATASET, pairs=PAIRS),
    script:
        "../../scripts/write_injection_report.py"


rule write_older_names:
    input:
        summary=f"{INJECTION}/tables/summary.parquet",
        measures=f"{INJECTION}/tables/measures.parquet",
        lib=library("write_older_names"),
    output:
        of_methods=each(f"{INJECTION}/{{name}}.json", name=OLDER_NAMES),
        master=f"{INJECTION}/master_test_results.json",
    log:
        "<results>/logs/write_older_names.log",
    benchmark:
        "<results>/benchmarks/write_older_names.jsonl"
    conda:
        "../../envs/publish.yaml"
    resources:
        mem_mb=memory(1000),
        runtime=10,
    params:
        cfg=settings(names=OLDER_NAMES),
    script:
        "../../scripts/write_older_names.py"


INJECTION_REPORTED += [
    rules.write_injection_report.output.report,
    f"{INJECTION}/tables/summary.parquet",
    f"{INJECTION}/figures/tradeoff.svg",
]
INJECTION_RESULTS += [
    rules.train_concept_saes.output,
    rules.capture_injection.output,
    *(each(getattr(rules.inject.output, name), method=SPEC.methods) for name in METHOD_FILES),
    rules.gather_injection.output,
    rules.draw_injection_figures.output,
    rules.write_injection_report.output,
    rules.write_older_names.output,
]


rule injection:
    input:
        INJECTION_RESULTS,
