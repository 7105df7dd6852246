"""SAELens trains one SAE on a language model, from tokens to a saved SAE; prints its CPU and wall time.

    python train_sae_lens.py '{"model": ..., "tokens": ..., "output": ..., ...}'

`tokens` is a folder with one Parquet file of contexts (`input_ids`), as packed for saeflow.
"""

import json
import sys
import time

import torch
from datasets import load_dataset
from sae_lens import BatchTopKTrainingSAEConfig, LanguageModelSAERunnerConfig, LoggingConfig
from sae_lens.llm_sae_training_runner import LanguageModelSAETrainingRunner


def main(job: dict) -> dict[str, float]:
    torch.set_num_threads(1)
    cpu, wall = time.process_time(), time.perf_counter()
    sae = BatchTopKTrainingSAEConfig(
        d_in=job["d_in"],
        d_sae=job["d_sae"],
        k=job["k"],
        normalize_activations=job["normalize"],
        device="cpu",
    )
    settings = LanguageModelSAERunnerConfig(
        sae=sae,
        model_name=job["model"],
        model_class_name="AutoModelForCausalLM",
        hook_name=job["hook"],
        # A folder is taken for a name on the hub; the data set itself is given below.
        dataset_path="",
        streaming=False,
        is_dataset_tokenized=True,
        context_size=job["context"],
        # The first token of a context, as saeflow leaves it out; start tokens further on too.
        seqpos_slice=(1, None),
        exclude_special_tokens=[job["start"]],
        training_tokens=job["steps"] * job["batch"],
        train_batch_size_tokens=job["batch"],
        store_batch_size_prompts=32,
        lr=job["lr"],
        lr_warm_up_steps=job["warmup"],
        lr_decay_steps=job["decay"],
        n_eval_batches=0,
        logger=LoggingConfig(log_to_wandb=False),
        n_checkpoints=0,
        checkpoint_path=None,
        output_path=f"{job['output']}/{job['hook']}",
        device="cpu",
        seed=job["seed"],
        verbose=False,
    )
    contexts = load_dataset("parquet", data_files=f"{job['tokens']}/*.parquet", split="train")
    LanguageModelSAETrainingRunner(settings, override_dataset=contexts).run()
    return {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
