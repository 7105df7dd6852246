"""Training steps of sparsify, put together as in its trainer: that has no loop over precomputed activations."""

import torch
from protocol import DEAD_BIAS, LAST_STEP, Shape, Subject, dead_latents, device, main
from sparsify import SparseCoder, SparseCoderConfig
from transformers import get_linear_schedule_with_warmup

AUXK_COEFFICIENT = 1 / 32


def make(variant: str, shape: Shape) -> Subject | None:
    if variant not in ("topk", "auxk"):
        return None
    sae = SparseCoder(shape.d_in, SparseCoderConfig(num_latents=shape.d_sae, k=shape.k), device(), torch.float32)
    optimizer = torch.optim.Adam(sae.parameters(), lr=2e-4 / (shape.d_sae / 2**14) ** 0.5)
    schedule = get_linear_schedule_with_warmup(optimizer, 1, LAST_STEP)
    since_fired = torch.zeros(shape.d_sae, dtype=torch.long, device=device())
    did_fire = torch.zeros(shape.d_sae, dtype=torch.bool, device=device())
    dead = dead_latents(shape).to(device()) if variant == "auxk" else None

    def step(x: torch.Tensor) -> None:
        sae.set_decoder_norm_to_unit_norm()
        total_variance = (x - x.mean(0)).pow(2).sum()
        out = sae(x=x, y=x, dead_mask=dead, total_variance=total_variance)
        did_fire[out.latent_indices.flatten()] = True
        float(out.fvu.detach())
        (out.fvu + AUXK_COEFFICIENT * out.auxk_loss).backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        since_fired.add_(len(x))
        since_fired[did_fire] = 0
        did_fire.zero_()

    def before() -> None:
        if variant == "auxk":
            sae.encoder.bias.data[dead] = DEAD_BIAS

    return Subject(step, before)


if __name__ == "__main__":
    main("eai-sparsify", make)
