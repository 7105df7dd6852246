# Activation stores: one pass over each network captures every hook point of the study.
MANIFESTS = each(f"{STORE}/manifest.json", seed=SEEDS, hook=HOOKS, split=SPLITS)
# A single job writes whole stores, manifests and all; one of several writes its own part of each.
PART, JOB, WHOLE = "part-0", "{architecture}-{role}", MANIFESTS
if len(PARTS) > 1:
    PART, JOB, WHOLE = "part-{shard}", "{architecture}-{role}.{shard}", []


rule capture_activations:
    input:
        dataset=IMAGES,
        weights=WEIGHTS,
        lib=library("capture_activations"),
    output:
        manifests=WHOLE,
        parts=[directory(part) for part in each(f"{STORE}/{PART}", seed=SEEDS, hook=HOOKS, split=SPLITS)],
    log:
        f"<results>/logs/capture_activations/{JOB}.log",
    benchmark:
        f"<results>/benchmarks/capture_activations/{JOB}.jsonl"
    conda:
        "../../envs/torch.yaml"
    threads: STUDY.compute.threads
    resources:
        mem_mb=memory(2000),
        runtime=30,
        gpu=GPU,
    params:
        cfg=settings("activations", seeds=list(SEEDS)),
    script:
        "../../scripts/capture_activations.py"


if len(PARTS) > 1:

    rule gather_activations:
        input:
            parts=each(f"{STORE}/{PART}", seed=SEEDS, hook=HOOKS, split=SPLITS, shard=PARTS),
            lib=library("gather_activations"),
        output:
            manifests=MANIFESTS,
        log:
            "<results>/logs/gather_activations/{architecture}-{role}.log",
        benchmark:
            "<results>/benchmarks/gather_activations/{architecture}-{role}.jsonl"
        conda:
            "../../envs/torch.yaml"
        resources:
            mem_mb=memory(1000),
            runtime=30,
        params:
            cfg=settings(),
        script:
            "../../scripts/gather_activations.py"


STORES = each(MANIFESTS, **CAPTURED_AT) + each(
    f"{STORE}/part-{{shard}}", **TRAINED_AT, seed=SEEDS, split=SPLITS, shard=PARTS
)


rule activations:
    input:
        STORES,
