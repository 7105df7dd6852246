# The catalog: runs, SAEs, features and scores in one database, which the command line `saeflow` reads.

# The files that a run is read from: a table per SAE, and what lies beside it.
CATALOGUED = each(saes(f"{FEATURES}/features.parquet"), **TRAINED_AT) if CAPTURED else []
BESIDE = [FITTED, outputs_of(rules.evaluate_saes, **TRAINED_AT)] if CAPTURED else []
if STUDY.injection:
    CATALOGUED += [f"{INJECTION}/tables/measures.parquet"]


# Alembic finds the migrations by their folder, so that no import tells.
rule load_catalog:
    input:
        tables=CATALOGUED,
        beside=BESIDE,
        migrations=sorted(map(str, (Path(workflow.basedir) / "scripts/saeflow/catalog/migrations").rglob("*.py"))),
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
