# Sparse autoencoders on the stores of one hook point of a network, of all its members: every variant and seed in one job,
# or in `saes.shards` jobs, each a rule because Snakemake wants the names of its outputs.
for fitted in FITTED:
    is_spliced = any(variant.splice_kl for variant in fitted.saes.variants.values())

    for shard, keys in enumerate(fitted.jobs):
        name, part = ("", "") if len(fitted.jobs) == 1 else (f"_{shard}", f".{shard}")

        rule:
            name:
                f"train_saes{fitted.suffix}{name}"
            input:
                network=(lambda wildcards: network_files(wildcards.network)) if is_spliced else [],
                stores=fitted.manifests(fitted.splits[0]),
                chunks=map(ancient, fitted.parts(fitted.splits[0])),
                lib=library("train_saes"),
            output:
                saes=fitted.of_job(keys, "cfg.json"),
                weights=fitted.of_job(keys, "sae_weights.safetensors"),
                curves=fitted.of_job(keys, ".curves.parquet"),
            log:
                f"<results>/logs/train_saes{fitted.suffix}/{{network}}/{{hook}}{part}.log",
            benchmark:
                f"<results>/benchmarks/train_saes{fitted.suffix}/{{network}}/{{hook}}{part}.jsonl"
            wildcard_constraints:
                network="|".join(fitted.networks),
            conda:
                "../../envs/torch.yaml"
            threads: STUDY.compute.threads
            resources:
                mem_mb=memory(3000),
                runtime=720,
                gpu=GPU,
            params:
                cfg=of_saes(fitted, "origins", shard=shard, saes=fitted.saes.model_dump(mode="json"), **fitted.stacked),
            script:
                "../../scripts/train_saes.py"

    rule:
        name:
            f"evaluate_saes{fitted.suffix}"
        input:
            network=lambda wildcards: network_files(wildcards.network),
            given=lambda wildcards: input_files(wildcards.network),
            stores=fitted.manifests(fitted.splits[1]),
            chunks=map(ancient, fitted.parts(fitted.splits[1])),
            saes=fitted.each("cfg.json"),
            weights=fitted.each("sae_weights.safetensors"),
            lib=library("evaluate_saes", fitted.kind, fitted.reads),
        output:
            metrics=fitted.metrics,
        log:
            f"<results>/logs/evaluate_saes{fitted.suffix}/{{network}}/{{hook}}.log",
        benchmark:
            f"<results>/benchmarks/evaluate_saes{fitted.suffix}/{{network}}/{{hook}}.jsonl"
        wildcard_constraints:
            network="|".join(fitted.networks),
        conda:
            f"../../envs/{fitted.environment}.yaml"
        threads: STUDY.compute.threads
        resources:
            mem_mb=memory(4000),
            runtime=240,
            gpu=GPU,
        params:
            cfg=of_saes(
                fitted,
                "section",
                kind=fitted.kind,
                variants=fitted.variants,
                sae_seeds=list(fitted.saes.seeds),
                batch_size=fitted.at[0].activations["batch_size"],
                **fitted.stacked,
            ),
        script:
            "../../scripts/evaluate_saes.py"


TRAINED = [path for fitted in FITTED for end in plan.SAE_FILES for path in fitted.everywhere(fitted.each(end))]
EVALUATED = [path for fitted in FITTED for path in fitted.everywhere([fitted.metrics])]


rule saes:
    input:
        TRAINED,
        EVALUATED,
