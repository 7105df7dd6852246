"""Training steps of overcomplete, each by its own `train_sae` on one batch."""

import sys
from functools import partial
from itertools import count
from types import ModuleType

import torch
from protocol import Shape, Subject, Training, device, main

# overcomplete's image models import it at the top; see benchmarks/environments.py for why it is not there.
sys.modules["torchvision"] = torchvision = ModuleType("torchvision")
torchvision.transforms = ModuleType("torchvision.transforms")

from overcomplete.sae import SAE, BatchTopKSAE, TopKSAE, mse_l1, train_sae  # noqa: E402


def build(variant: str, shape: Shape):
    """Model and training function; `top_k` of BatchTopK counts over the whole batch."""
    match variant:
        case "relu":
            model = SAE(shape.d_in, shape.d_sae)
        case "topk":
            model = TopKSAE(shape.d_in, shape.d_sae, top_k=shape.k)
        case "batchtopk":
            model = BatchTopKSAE(shape.d_in, shape.d_sae, top_k=shape.k * shape.batch)
        case _:
            return None
    model = model.to(device())
    criterion = partial(mse_l1, penalty=1e-3 if variant == "relu" else 0.0)
    if variant != "relu":
        criterion = reconstruction
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    return partial(train_sae, model, criterion=criterion, optimizer=optimizer, nb_epochs=1)


def reconstruction(x, x_hat, pre_codes, codes, dictionary):
    return (x - x_hat).square().mean()


def make(variant: str, shape: Shape) -> Subject | None:
    train = build(variant, shape)
    return train and Subject(lambda x: train([x], monitoring=0, device=str(device())))


def make_loop(variant: str, shape: Shape) -> Subject | None:
    train = build(variant, shape)
    return train and Subject(lambda batches: train(list(batches), monitoring=0))


def fit(shape: Shape, training: Training, batches: list[torch.Tensor]):
    model, steps = SAE(shape.d_in, shape.d_sae), count()

    def criterion(x, x_hat, pre_codes, codes, dictionary):
        penalty = training.penalty * min(1.0, next(steps) / training.penalty_warmup)
        return (x - x_hat).square().sum(1).mean() + penalty * codes.sum(1).mean()

    optimizer = torch.optim.Adam(model.parameters(), lr=training.learning_rate)
    train_sae(model, batches, criterion, optimizer, nb_epochs=1, monitoring=0)
    return lambda x: model.encode(x)[1]


if __name__ == "__main__":
    main("overcomplete", make, make_loop, fit)
