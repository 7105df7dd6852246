# Activation stores: one pass over each network captures every hook point of the study.


rule capture_activations:
    input:
        dataset=IMAGES,
        weights=WEIGHTS,
        lib=library("capture_activations"),
    output:
        manifests=each(f"{STORE}/manifest.json", seed=SEEDS, hook=HOOKS, split=SPLITS),
        parts=[directory(part) for part in each(f"{STORE}/part-0", seed=SEEDS, hook=HOOKS, split=SPLITS)],
    log:
        "<results>/logs/capture_activations/{architecture}-{role}.log",
    benchmark:
        "<results>/benchmarks/capture_activations/{architecture}-{role}.jsonl"
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


rule activations:
    input:
        outputs_of(rules.capture_activations, architecture=ARCHITECTURES, role=CAPTURED),
