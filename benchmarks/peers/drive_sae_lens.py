"""Training steps of SAELens."""

from protocol import DEAD_BIAS, LAST_STEP, Shape, Subject, Training, dead_latents, device, main
from sae_lens import (
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)
from sae_lens.config import SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer


def trainer(variant: str, shape: Shape, n_steps: int, data=None) -> SAETrainer:
    sizes = {"d_in": shape.d_in, "d_sae": shape.d_sae, "device": str(device())}
    if variant == "relu":
        sae = StandardTrainingSAE(StandardTrainingSAEConfig(**sizes))
    elif variant == "batchtopk":
        sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**sizes, k=shape.k))
    else:
        sae = TopKTrainingSAE(TopKTrainingSAEConfig(**sizes, k=shape.k))
    samples = {"total_training_samples": n_steps * shape.batch, "train_batch_size_samples": shape.batch}
    return SAETrainer(SAETrainerConfig(**samples, lr_end=3e-5, device=str(device())), sae, data)


def make(variant: str, shape: Shape) -> Subject:
    subject = trainer(variant, shape, LAST_STEP)
    dead = dead_latents(shape)

    def before() -> None:
        if variant == "auxk":
            subject.sae.b_enc.data[dead] = DEAD_BIAS
            subject.n_forward_passes_since_fired[dead] = 10 * subject.cfg.dead_feature_window

    return Subject(subject.step, before)


def make_loop(variant: str, shape: Shape) -> Subject:
    return Subject(lambda batches: trainer(variant, shape, len(batches), iter(batches)).fit())


def fit(shape: Shape, training: Training, batches: list):
    penalty = {"l1_coefficient": training.penalty, "l1_warm_up_steps": training.penalty_warmup}
    sae = StandardTrainingSAE(StandardTrainingSAEConfig(d_in=shape.d_in, d_sae=shape.d_sae, **penalty))
    samples = {
        "total_training_samples": training.steps * shape.batch,
        "train_batch_size_samples": shape.batch,
        "lr": training.learning_rate,
        "lr_end": training.learning_rate,
    }
    SAETrainer(SAETrainerConfig(**samples), sae, iter(batches)).fit()
    return sae.encode


if __name__ == "__main__":
    main("sae-lens", make, make_loop, fit)
