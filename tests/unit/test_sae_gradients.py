"""Hand-written gradients against autograd on the plain form of each loss, in float64."""

import pytest
import torch

from saeflow.config.saes import BatchTopK, Gated, JumpReLU, MatryoshkaBatchTopK, ReLU, TopK
from saeflow.sae import dead as dead_latents
from saeflow.sae.dead import DeadLatents
from saeflow.sae.gradients import mean_of
from saeflow.sae.objectives import base, objective_of

D_IN, D_SAE, BATCH = 12, 40, 96

SPECS = {
    "relu": [ReLU(architecture="relu", d_sae=D_SAE, penalty=p) for p in (0.3, 0.7)],
    "topk": [TopK(architecture="topk", d_sae=D_SAE, k=k) for k in (5, 3)],
    "batchtopk": [BatchTopK(architecture="batchtopk", d_sae=D_SAE, k=k) for k in (4, 6)],
    "matryoshka": [
        MatryoshkaBatchTopK(architecture="matryoshka", d_sae=D_SAE, k=k, prefixes=(6, 15, D_SAE)) for k in (4, 6)
    ],
    "jumprelu": [
        JumpReLU(architecture="jumprelu", d_sae=D_SAE, penalty=p, bandwidth=w) for p, w in ((0.3, 0.4), (0.5, 0.2))
    ],
    "gated": [Gated(architecture="gated", d_sae=D_SAE, penalty=p) for p in (0.3, 0.7)],
}


class _Step(torch.autograd.Function):
    """H(p - t), with the straight-through gradient for t of Rajamanoharan et al. 2024, eq. 11."""

    @staticmethod
    def forward(ctx, p, t, width):
        ctx.save_for_backward(p, t)
        ctx.width = width
        return (p > t).to(p.dtype)

    @staticmethod
    def backward(ctx, g):
        p, t = ctx.saved_tensors
        window = ((p - t).abs() < ctx.width / 2).to(p.dtype)
        return torch.zeros_like(p), (-window / ctx.width * g).sum(0), None


def plain_loss(spec, q, x, warmup=1.0, dead=None):
    """One member's loss as its paper writes it."""
    centered = x - q["b_dec"]
    h = centered @ q["W_enc_T"].T
    p = h + q["b_gate" if isinstance(spec, Gated) else "b_enc"]
    penalty, ends = 0.0, (spec.d_sae,)
    match spec:
        case ReLU():
            z = p.relu()
            penalty = spec.penalty * warmup * (z * q["W_dec"].detach().norm(dim=1)).sum(1).mean()
        case TopK():
            values, indices = p.relu().topk(spec.k, dim=1)
            z = torch.zeros_like(p).scatter(1, indices, values)
        case BatchTopK() | MatryoshkaBatchTopK():
            values, indices = p.relu().flatten().topk(spec.k * len(x))
            z = torch.zeros_like(p).flatten().scatter(0, indices, values).view_as(p)
            ends = getattr(spec, "prefixes", ends)
        case JumpReLU():
            t = q["log_threshold"].exp()
            step = _Step.apply(p, t, spec.bandwidth)
            # The step's gradient with respect to p is left out, so p enters the value as a factor only.
            z = p * (p > t) + (_Step.apply(p.detach(), t, spec.bandwidth) - (p > t).to(p)) * t.detach()
            penalty = spec.penalty * warmup * step.sum(1).mean()
        case Gated():
            gate = (p > 0).to(p.dtype)
            z = gate * (h * q["r_mag"].exp() + q["b_mag"]).relu()
            frozen = p.relu() @ q["W_dec"].detach() + q["b_dec"].detach()
            penalty = spec.penalty * warmup * p.relu().sum(1).mean() + (x - frozen).square().sum(1).mean()
    loss = sum((x - z[:, :n] @ q["W_dec"][:n] - q["b_dec"]).square().sum(1).mean() for n in ends) / len(ends)
    if dead is not None:
        e = (x - z @ q["W_dec"] - q["b_dec"]).detach()
        values, slots = p[:, dead].topk(min(D_IN // 2, len(dead)), dim=1)
        z_aux = torch.zeros_like(p[:, dead]).scatter(1, slots, values)
        scale = x.square().sum() / e.square().sum()
        loss = loss + spec.auxk_coefficient * scale * (e - z_aux @ q["W_dec"][dead]).square().sum(1).mean()
    return loss + penalty


def parameters_of(specs, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    m = len(specs)
    matrices = {
        "W_enc_T": draw(m, D_SAE, D_IN) / 3,
        "W_dec": torch.nn.functional.normalize(draw(m, D_SAE, D_IN), dim=2),
    }
    vectors = {name: 0.1 * draw(m, D_SAE) - 0.1 for name in objective_of(specs[0]).initial_vectors(specs[0])}
    return {**matrices, "b_dec": 0.3 * draw(m, D_IN), **vectors}


def batch(seed=1, m=None):
    generator = torch.Generator().manual_seed(seed)
    shape = (BATCH, D_IN) if m is None else (m, BATCH, D_IN)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def compare(specs, x, dense, warmup=1.0, dead=None):
    """Largest relative error over all gradients of all members."""
    parameters = parameters_of(specs)
    if dead is not None:
        parameters[objective_of(specs[0]).bias][dead] = -50.0
    m = len(specs)
    stacked = x.expand(m, *x.shape[-2:])
    found = None
    if dead is not None:
        found = DeadLatents(dead, D_IN // 2, torch.tensor([s.auxk_coefficient for s in specs], dtype=torch.float64))
    objective = objective_of(specs[0])(specs, parameters)
    ours = objective.gradients(stacked, dense=dense, warmup=warmup, dead=found, measure=True)
    loss = sum(ours.terms.values())
    for i, spec in enumerate(specs):
        q = {name: tensor[i].clone().requires_grad_() for name, tensor in parameters.items()}
        index = None if dead is None else dead[i].nonzero().squeeze(1)
        reference = plain_loss(spec, q, stacked[i], warmup, index)
        reference.backward()
        torch.testing.assert_close(loss[i], reference.detach(), rtol=1e-9, atol=0)
        for name, tensor in q.items():
            if name in ours.matrices:
                rows = objective.d_sae
                mine = ours.matrices[name].block(i * rows, (i + 1) * rows)
            else:
                mine = ours.vectors[name][i]
            torch.testing.assert_close(mine, tensor.grad, rtol=1e-7, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("dense", [False, True], ids=["sparse", "dense"])
@pytest.mark.parametrize("variant", SPECS)
def test_gradients_of_one_member_are_those_of_autograd(variant, dense):
    compare(SPECS[variant][:1], batch(), dense, warmup=0.5)


@pytest.mark.parametrize("dense", [False, True], ids=["sparse", "dense"])
@pytest.mark.parametrize("variant", SPECS)
def test_gradients_of_stacked_members_are_those_of_autograd(variant, dense):
    compare(SPECS[variant], batch(m=2), dense)


@pytest.mark.parametrize("dense", [False, True], ids=["sparse", "dense"])
@pytest.mark.parametrize("variant", SPECS)
def test_gradients_with_auxk_are_those_of_autograd(variant, dense, monkeypatch):
    # A few rows of dead preactivations at a time, the last run of them shorter.
    monkeypatch.setattr(dead_latents, "_CHUNK_NUMBERS", 18 * 2 * 7)
    dead = torch.zeros(2, D_SAE, dtype=torch.bool)
    dead[0, 2:20] = True
    dead[1, [1, 7, 30]] = True
    compare(SPECS[variant], batch(m=2), dense, dead=dead)
    compare(SPECS[variant][:1], batch(), dense, dead=dead[:1])


@pytest.mark.parametrize("dense", [False, True], ids=["sparse", "dense"])
@pytest.mark.parametrize("variant", SPECS)
def test_gradients_do_not_depend_on_how_many_rows_are_held_at_a_time(variant, dense, monkeypatch):
    monkeypatch.setitem(base._CHUNK_BYTES, "cpu", D_SAE * 8 * 7)
    compare(SPECS[variant][:1], batch(), dense)


@pytest.mark.parametrize("dense", [False, True], ids=["sparse", "dense"])
@pytest.mark.parametrize("variant", SPECS)
def test_gradient_of_a_spliced_loss_is_added(variant, dense):
    specs = SPECS[variant]
    x = batch(m=2)
    parameters = parameters_of(specs)
    target = batch(seed=5, m=2)

    def splice(x_hat):
        return (x_hat * target).sum(2).mean(1), target / BATCH

    ours = objective_of(specs[0])(specs, parameters).gradients(x, dense=dense, splice=splice, measure=True)
    without = objective_of(specs[0])(specs, parameters).gradients(x, dense=dense, measure=True)
    # x_hat is linear in b_dec where the encoder is left aside: through x_hat, the gradient is the mean target.
    W_enc_T = parameters["W_enc_T"]
    bias = objective_of(specs[0]).bias
    if bias == "b_enc":
        change = ours.vectors["b_dec"] - without.vectors["b_dec"]
        encoder = ours.vectors[bias] - without.vectors[bias]
        expected = target.mean(1) - torch.einsum("mf,mfd->md", encoder, W_enc_T)
        torch.testing.assert_close(change, expected)
    assert (ours.matrices["W_dec"].block(0, D_SAE) - without.matrices["W_dec"].block(0, D_SAE)).abs().max() > 1e-4
    assert set(ours.terms) - set(without.terms) == {"splice"}


def test_auxk_reaches_the_encoder_of_latents_that_never_fire():
    specs = SPECS["topk"][:1]
    parameters = parameters_of(specs)
    parameters["b_enc"][0, :10] = -100.0
    dead = torch.zeros(1, D_SAE, dtype=torch.bool)
    dead[0, :10] = True
    found = DeadLatents(dead, D_IN // 2, torch.tensor([1 / 32], dtype=torch.float64))
    ours = objective_of(specs[0])(specs, parameters).gradients(batch()[None], dead=found)
    assert not ours.fired[0, :10].any()
    assert (ours.matrices["W_enc_T"].block(0, 10).norm(dim=1) > 1e-6).all()


def test_measured_l0_is_the_number_of_active_latents():
    for variant in ("topk", "batchtopk", "matryoshka"):
        specs = SPECS[variant]
        ours = objective_of(specs[0])(specs, parameters_of(specs)).gradients(batch(m=2), measure=True)
        torch.testing.assert_close(ours.l0, torch.tensor([float(s.k) for s in specs], dtype=torch.float64))


def test_batchtopk_finds_the_same_entries_whatever_bound_it_starts_from():
    specs = SPECS["batchtopk"]
    parameters = parameters_of(specs)
    x = batch(m=2)
    blocks = []
    for start in (None, 0.0, 1e6):
        objective = objective_of(specs[0])(specs, parameters)
        if start is not None:
            objective.threshold = torch.full((2,), start, dtype=torch.float64)
        blocks.append(objective.gradients(x).matrices["W_dec"].block(0, 2 * D_SAE))
    torch.testing.assert_close(blocks[1], blocks[0], rtol=0, atol=0)
    torch.testing.assert_close(blocks[2], blocks[0], rtol=0, atol=0)


def test_blocks_of_a_gradient_are_rows_of_the_whole():
    specs = SPECS["topk"]
    dead = torch.zeros(2, D_SAE, dtype=torch.bool)
    dead[:, 3:9] = True
    found = DeadLatents(dead, 4, torch.tensor([1.0, 1.0], dtype=torch.float64))
    gradient = objective_of(specs[0])(specs, parameters_of(specs)).gradients(batch(m=2), dead=found).matrices["W_enc_T"]
    whole = gradient.block(0, 2 * D_SAE)
    pieces = [gradient.block(i, min(i + 7, 2 * D_SAE)) for i in range(0, 2 * D_SAE, 7)]
    torch.testing.assert_close(torch.cat(pieces), whole)


@pytest.mark.parametrize("dense", [False, True], ids=["sparse", "dense"])
@pytest.mark.parametrize("variant", SPECS)
def test_gradients_of_a_batch_in_parts_are_the_mean_of_those_of_the_parts(variant, dense):
    specs, x = SPECS[variant], batch(m=2)

    def gradients(part):
        return objective_of(specs[0])(specs, parameters_of(specs)).gradients(part, dense=dense, measure=True)

    in_parts, apart = gradients_in_parts(specs, x, dense), [gradients(part) for part in x.chunk(3, dim=1)]
    for name, gradient in in_parts.matrices.items():
        expected = sum(part.matrices[name].block(0, 2 * D_SAE) for part in apart) / 3
        torch.testing.assert_close(gradient.block(0, 2 * D_SAE), expected)
    for name, gradient in in_parts.vectors.items():
        torch.testing.assert_close(gradient, sum(part.vectors[name] for part in apart) / 3)
    torch.testing.assert_close(in_parts.error, torch.cat([part.error for part in apart], 1))
    torch.testing.assert_close(sum(in_parts.terms.values()), sum(sum(part.terms.values()) for part in apart) / 3)
    torch.testing.assert_close(in_parts.l0, sum(part.l0 for part in apart) / 3)
    assert in_parts.fired.equal(torch.stack([part.fired for part in apart]).any(0))


@pytest.mark.parametrize("dense", [False, True], ids=["sparse", "dense"])
@pytest.mark.parametrize("variant", SPECS)
def test_dead_latents_get_the_mean_of_what_they_get_from_the_parts_of_a_batch(variant, dense):
    specs, x = SPECS[variant], batch(m=2)
    dead = torch.zeros(2, D_SAE, dtype=torch.bool)
    dead[0, 2:20] = True
    dead[1, [1, 7, 30]] = True

    def gradients(parts):
        parameters = parameters_of(specs)
        parameters[objective_of(specs[0]).bias][dead] = -50.0
        found = DeadLatents(dead, D_IN // 2, torch.tensor([s.auxk_coefficient for s in specs], dtype=torch.float64))
        objective = objective_of(specs[0])(specs, parameters)
        return (objective.gradients(part, dense=dense, dead=found) for part in parts)

    in_parts = mean_of(gradients(x.chunk(3, dim=1)))
    apart = [next(gradients([part])) for part in x.chunk(3, dim=1)]
    for name, gradient in in_parts.matrices.items():
        rows = gradient.block(0, 2 * D_SAE)
        assert (rows[dead.flatten()].norm(dim=1) > 0).all()
        torch.testing.assert_close(rows, sum(part.matrices[name].block(0, 2 * D_SAE) for part in apart) / 3)


@pytest.mark.parametrize("variant", ["relu", "topk", "jumprelu", "gated"])
def test_parts_change_nothing_where_rows_do_not_see_one_another(variant):
    specs, x = SPECS[variant], batch(m=2)
    whole = objective_of(specs[0])(specs, parameters_of(specs)).gradients(x)
    in_parts = gradients_in_parts(specs, x, dense=False)
    for name, gradient in in_parts.matrices.items():
        torch.testing.assert_close(gradient.block(0, 2 * D_SAE), whole.matrices[name].block(0, 2 * D_SAE))
    for name, gradient in in_parts.vectors.items():
        torch.testing.assert_close(gradient, whole.vectors[name])


def gradients_in_parts(specs, x, dense):
    """Of one objective, which takes the same memory for each part."""
    objective = objective_of(specs[0])(specs, parameters_of(specs))
    return mean_of(objective.gradients(part, dense=dense, measure=True) for part in x.chunk(3, dim=1))
