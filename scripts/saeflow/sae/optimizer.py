"""Adam in blocks of latents, its schedules, and decoder rows of length 1."""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from saeflow.config.saes import Training
from saeflow.sae.gradients import Gradients, RowGradient

# A block's gradient, moments and weights should fit the cache together: they are each touched several times.
_BLOCK_BYTES = {"cpu": 1 << 20, "cuda": 1 << 30}
_BETAS = (0.9, 0.999)
_EPSILON = 1e-8


def learning_rate(training: Training, step: int) -> float:
    """Step size of step 0, 1, ...: a linear rise, a plateau, a linear fall that would reach 0 after the last step."""
    rise = min(1.0, (step + 1) / training.warmup_steps) if training.warmup_steps else 1.0
    falling = training.decay_share * training.steps
    fall = min(1.0, (training.steps - step) / falling) if falling else 1.0
    return training.learning_rate * rise * fall


def penalty_warmup(training: Training, step: int) -> float:
    """Factor on the sparsity penalty at step 0, 1, ...: rises linearly from 0 to 1."""
    return min(1.0, step / training.sparsity_warmup_steps) if training.sparsity_warmup_steps else 1.0


class Adam:
    """theta -= lr * m_hat / (sqrt(v_hat) + 1e-8), with betas 0.9 and 0.999; rows of W_dec keep length 1.

    Kingma & Ba 2015. Of W_dec's gradient, the part along each row is removed before the step, and the row is brought
    back to length 1 after it (Bricken et al. 2023). Matrices are updated block by block of rows, so that no gradient of
    a whole matrix is needed.

    With one second moment per latent, that of a matrix row is the running mean of |g|^2 / d_in, and all of the row is
    divided by its root: half the memory of the moments (Zhang et al. 2024, "Adam-mini", algorithm 1; their blocks are
    the output neurons of a layer and the rows of an embedding, here the rows of W_enc^T and of W_dec).

    Arguments:
        parameters: matrices [m, d_sae, d_in] and vectors [m, n]; updated in place.
        second_moment: of matrices one number per element, or per latent; vectors always have one per element.
    """

    def __init__(self, parameters: dict[str, Tensor], second_moment: Literal["element", "latent"] = "element") -> None:
        self.parameters = parameters
        self.per_latent = second_moment == "latent"
        self.first = {name: torch.zeros_like(p) for name, p in parameters.items()}
        self.second = {
            name: p.new_zeros(*p.shape[:-1], 1) if self.per_latent and p.dim() == 3 else torch.zeros_like(p)
            for name, p in parameters.items()
        }
        device = next(iter(parameters.values())).device
        self.step_count = torch.zeros((), dtype=torch.float32, device=device)

    def step(self, gradients: Gradients, lr: float) -> None:
        """Update all parameters."""
        self.step_count += 1
        stores = (self.parameters, self.first, self.second)
        vectors = tuple([store[name] for name in gradients.vectors] for store in stores)
        self._update(vectors, list(gradients.vectors.values()), lr)
        for name, gradient in gradients.matrices.items():
            self._update_rows(name, gradient, lr)

    def reset(self, name: str, member: int, latents: Tensor) -> None:
        """Forget what is known about some latents of a member."""
        self.first[name][member, latents] = 0
        self.second[name][member, latents] = 0

    def _update(self, tensors: tuple[list[Tensor], ...], gradients: list[Tensor], lr: float) -> None:
        """Adam on parameters, given with their first and second moments, element by element."""
        parameters, first, second = tensors
        torch._fused_adam_(
            parameters,
            gradients,
            first,
            second,
            [],
            [self.step_count] * len(parameters),
            lr=lr,
            beta1=_BETAS[0],
            beta2=_BETAS[1],
            weight_decay=0.0,
            eps=_EPSILON,
            amsgrad=False,
            maximize=False,
        )

    def _update_latents(self, W: Tensor, first: Tensor, second: Tensor, g: Tensor, lr: float) -> None:
        """Adam on rows [n, d_in] whose second moments are [n, 1]."""
        first.lerp_(g, 1 - _BETAS[0])
        second.lerp_(torch.linalg.vecdot(g, g)[:, None] / g.shape[1], 1 - _BETAS[1])
        # 1 - beta^t, as a tensor: the host does not wait for the device.
        bias = [-torch.expm1(self.step_count * math.log(beta)) for beta in _BETAS]
        W.addcmul_(first, (lr / bias[0]) / ((second / bias[1]).sqrt_() + _EPSILON), value=-1)

    def _update_rows(self, name: str, gradient: RowGradient, lr: float) -> None:
        stores = (self.parameters, self.first, self.second)
        flat = [store[name].view(-1, store[name].shape[-1]) for store in stores]
        n_rows, d = flat[0].shape
        block = max(1, _BLOCK_BYTES[flat[0].device.type] // (d * flat[0].element_size()))
        for start in range(0, n_rows, block):
            stop = min(start + block, n_rows)
            W, first, second = flat if block >= n_rows else (tensor[start:stop] for tensor in flat)
            g = gradient.block(start, stop)
            if name == "W_dec":
                remove_parallel(g, W)
            if self.per_latent:
                self._update_latents(W, first, second, g, lr)
            else:
                self._update(([W], [first], [second]), [g], lr)
            if name == "W_dec":
                W.div_(torch.linalg.vector_norm(W, dim=1, keepdim=True))

    def state(self) -> dict[str, Tensor]:
        """Everything that a checkpoint needs, by name."""
        moments = {"first": self.first, "second": self.second}
        tensors = {f"{kind}.{name}": t for kind, store in moments.items() for name, t in store.items()}
        return {**tensors, "step_count": self.step_count}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        for name, tensor in self.state().items():
            tensor.copy_(tensors[name])


def remove_parallel(g: Float[Tensor, "n d"], W: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Take from each row of g, in place, its part along the row of W, which has length 1."""
    return g.addcmul_(W, torch.linalg.vecdot(g, W)[:, None], value=-1)
