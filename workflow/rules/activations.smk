# Activation stores: one pass over each network captures every hook point of the study. A rule for each set of networks
# with the same hook points, because Snakemake wants the names of a rule's outputs.
for captured in CAPTURED:
    # A single job writes whole stores, manifests and all; one of several writes its own part of each.
    alone = len(captured.shards) == 1
    part, job = ("part-0", "{network}") if alone else ("part-{shard}", "{network}.{shard}")
    manifests = [f"{store}/manifest.json" for store in captured.stores]

    rule:
        name:
            f"capture_activations{captured.suffix}"
        input:
            network=lambda wildcards: network_files(wildcards.network),
            given=lambda wildcards: input_files(wildcards.network),
            checked=lambda wildcards: checked(wildcards.network, "capture"),
            lib=library("capture_activations", captured.kind, captured.reads),
        output:
            manifests=manifests if alone else [],
            parts=[directory(f"{store}/{part}") for store in captured.stores],
        log:
            f"<results>/logs/capture_activations{captured.suffix}/{job}.log",
        benchmark:
            f"<results>/benchmarks/capture_activations{captured.suffix}/{job}.jsonl"
        wildcard_constraints:
            network="|".join(captured.networks),
        conda:
            f"../../envs/{captured.environment}.yaml"
        threads: STUDY.compute.threads
        resources:
            mem_mb=memory(4000),
            runtime=240,
            gpu=GPU,
        params:
            cfg=settings(kind=captured.kind, settings=captured.settings, activations=captured.activations),
        script:
            "../../scripts/capture_activations.py"

    if not alone:

        rule:
            name:
                f"gather_activations{captured.suffix}"
            input:
                parts=[f"{store}/part-{shard}" for store in captured.stores for shard in captured.shards],
                lib=library("gather_activations"),
            output:
                manifests=manifests,
            log:
                f"<results>/logs/gather_activations{captured.suffix}/{{network}}.log",
            benchmark:
                f"<results>/benchmarks/gather_activations{captured.suffix}/{{network}}.jsonl"
            wildcard_constraints:
                network="|".join(captured.networks),
            conda:
                "../../envs/torch.yaml"
            resources:
                mem_mb=memory(1000),
                runtime=30,
            params:
                cfg=settings(),
            script:
                "../../scripts/gather_activations.py"


STORES = [
    path
    for captured in CAPTURED
    for end in ("manifest.json", *(f"part-{shard}" for shard in captured.shards))
    for path in captured.everywhere([f"{store}/{end}" for store in captured.stores])
]


rule activations:
    input:
        STORES,
