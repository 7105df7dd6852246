"""Training steps of dictionary_learning."""

from itertools import count

import torch
from dictionary_learning.dictionary import AutoEncoder
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE, BatchTopKTrainer
from dictionary_learning.trainers.standard import StandardTrainer
from dictionary_learning.trainers.top_k import AutoEncoderTopK, TopKTrainer
from dictionary_learning.training import trainSAE
from protocol import DEAD_BIAS, FIRST_STEP, LAST_STEP, Shape, Subject, Training, dead_latents, device, main

TRAINERS = {
    "relu": (StandardTrainer, AutoEncoder),
    "topk": (TopKTrainer, AutoEncoderTopK),
    "auxk": (TopKTrainer, AutoEncoderTopK),
    "batchtopk": (BatchTopKTrainer, BatchTopKSAE),
}


def config(variant: str, shape: Shape, n_steps: int) -> dict:
    trainer, dictionary = TRAINERS[variant]
    settings = {"trainer": trainer, "dict_class": dictionary, "activation_dim": shape.d_in, "dict_size": shape.d_sae}
    settings |= {"steps": n_steps, "layer": 0, "lm_name": "none", "warmup_steps": 1}
    settings["device"] = str(device())
    return settings | ({"sparsity_warmup_steps": None} if variant == "relu" else {"k": shape.k})


def make(variant: str, shape: Shape) -> Subject:
    settings = config(variant, shape, LAST_STEP)
    trainer = settings.pop("trainer")(**settings)
    dead, steps = dead_latents(shape), count(FIRST_STEP)

    def before() -> None:
        if variant == "auxk":
            trainer.ae.encoder.bias.data[dead] = DEAD_BIAS
            trainer.num_tokens_since_fired[dead] = trainer.dead_feature_threshold

    return Subject(lambda x: trainer.update(next(steps), x), before)


def make_loop(variant: str, shape: Shape) -> Subject:
    def fit(batches: torch.Tensor) -> None:
        settings = config(variant, shape, len(batches))
        trainSAE(iter(batches), [settings], steps=len(batches), use_wandb=False, device="cpu")

    return Subject(fit)


def fit(shape: Shape, training: Training, batches: list[torch.Tensor]):
    made = []

    def trainer(**settings) -> StandardTrainer:
        made.append(StandardTrainer(**settings))
        return made[-1]

    settings = config("relu", shape, training.steps) | {
        "trainer": trainer,
        "lr": training.learning_rate,
        "l1_penalty": training.penalty,
        "sparsity_warmup_steps": training.penalty_warmup,
    }
    trainSAE(iter(batches), [settings], steps=training.steps, use_wandb=False, device="cpu")
    return made[0].ae.encode


if __name__ == "__main__":
    main("dictionary-learning", make, make_loop, fit)
