"""Hierarchical SAEs: the equation against loops, gradients against autograd's dense ones, stages, resumption."""

import pytest
import torch

from saeflow.sae.health import DivergedError
from saeflow.sae.hierarchical import LEAK, HierarchicalSAEs, Reconstruction, losses
from saeflow.sae.hierarchical_training import Directions, Member, Objective, Schedule, Shape, Trainer, initial, unit

SHAPE = Shape(parents=6, children=3, rank=2, k=2)
D = 8


def normal(*size, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def stack(shape=SHAPE, n=2):
    drawn = [initial(shape, D, Member("a", seed, "x")) for seed in range(n)]
    parameters = {name: torch.stack([one[name] for one in drawn]) for name in drawn[0]}
    # Encoders apart from decoders, so that a mix-up shows.
    for i, name in enumerate(("encoder", "down", "child_encoder")):
        if name in parameters:
            parameters[name] = parameters[name] + 0.3 * normal(*parameters[name].shape, seed=i)
    parameters["encoder_bias"] = 0.1 * normal(n, shape.parents, seed=7)
    parameters["bias"] = normal(n, D, seed=8)
    return HierarchicalSAEs(parameters, shape.k)


def by_hand(saes, x):
    """The equation, one row at a time, through autograd's dense products."""
    p, out, top = saes.parameters, [], []
    for i, rows in enumerate(x):
        for row in rows:
            z = torch.relu(p["encoder"][i] @ row + p["encoder_bias"][i])
            active = (p["encoder"][i] @ row + p["encoder_bias"][i]).topk(saes.k).indices
            x_top = p["bias"][i] + sum(z[j] * p["decoder"][i, j] for j in active)
            x_hat = x_top
            for j in active:
                inner = torch.nn.functional.leaky_relu(p["child_encoder"][i, j] @ (p["down"][i, j] @ row), LEAK)
                c = inner.argmax()
                x_hat = x_hat + (z[j] > 0) * inner[c] * (p["child_decoder"][i, j, c] @ p["up"][i, j])
            out.append(x_hat)
            top.append(x_top)
    return torch.stack(out).view(x.shape), torch.stack(top).view(x.shape)


def test_reconstructions_are_those_of_the_equation():
    saes, x = stack(), normal(2, 20, D, seed=3)
    codes, x_hat = saes.forward(x)
    full, top = by_hand(saes, x)
    torch.testing.assert_close(x_hat.full, full)
    torch.testing.assert_close(x_hat.top, top)
    torch.testing.assert_close(saes.decode(saes.encode(x)).full, full)
    assert (codes.values == 0).any()  # a parent that is not active, and its child neither
    assert (codes.child_values[codes.values == 0] == 0).all()


def test_gradients_are_those_of_dense_products():
    saes, x = stack(), normal(2, 30, D, seed=4)
    names = list(saes.parameters)
    leaves = {name: saes.parameters[name].clone().requires_grad_() for name in names}
    with_leaves = HierarchicalSAEs(leaves, saes.k)
    target = normal(2, 30, D, seed=5)

    def loss(full, top):
        return ((full - target) ** 2).sum() + 0.3 * ((top - target) ** 2).sum()

    x_hat = with_leaves.forward(x)[1]
    ours = torch.autograd.grad(loss(x_hat.full, x_hat.top), list(leaves.values()))
    theirs = torch.autograd.grad(loss(*by_hand(with_leaves, x)), list(leaves.values()))
    for name, a, b in zip(names, ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4, msg=name)


def test_errors_have_the_gradients_of_their_formula():
    saes, x = stack(), normal(2, 30, D, seed=6)
    for below in (normal(2, 30, D, seed=2), None):
        parts = [normal(2, 30, D, seed=1)] + ([] if below is None else [below])
        parts = [part.requires_grad_() for part in parts]
        top, rest = parts[0], parts[1] if below is not None else None
        found = losses(saes, x, saes.encode(x), Reconstruction(top, rest))
        ours = torch.autograd.grad(found.reconstruction.sum() + 0.3 * (found.top * torch.tensor([1.0, 2])).sum(), parts)
        full = top if rest is None else top + rest
        errors = (x - full).square().sum((1, 2)) / 30, (x - top).square().sum((1, 2)) / 30
        torch.testing.assert_close((found.reconstruction, found.top), errors)
        theirs = torch.autograd.grad(errors[0].sum() + 0.3 * (errors[1] * torch.tensor([1.0, 2])).sum(), parts)
        torch.testing.assert_close(ours, theirs)


def test_terms_of_the_loss_have_known_values():
    # One parent along e_0 with its child along e_1: x = (2, 3) is rebuilt without error, the parent alone misses 3.
    eye = torch.eye(2)
    parameters = {
        "encoder": torch.tensor([[[1.0, 0], [0.6, 0.8]]]),
        "decoder": torch.tensor([[[1.0, 0], [0.6, 0.8]]]),
        "encoder_bias": torch.tensor([[0.0, -9.0]]),
        "bias": torch.zeros(1, 2),
        "down": eye[[1, 1]].view(1, 2, 1, 2).clone(),
        "up": eye[[1, 1]].view(1, 2, 1, 2).clone(),
        "child_encoder": torch.ones(1, 2, 1, 1),
        "child_decoder": torch.ones(1, 2, 1, 1),
    }
    saes, x = HierarchicalSAEs(parameters, 1), torch.tensor([[[2.0, 3.0]]])
    codes, x_hat = saes.forward(x)
    found = losses(saes, x, codes, x_hat)
    assert found.reconstruction.item() == pytest.approx(0)
    assert found.top.item() == pytest.approx(9)
    assert found.sparsity.item() == pytest.approx(2 + 3)
    assert found.biorthogonality.item() == pytest.approx(0.6)
    assert found.causal.item() == pytest.approx((0 + 0.8**2) / 2)


def teacher():
    parents, deltas = unit(normal(2, D, seed=1)), normal(5, D, seed=2)
    return Directions(parents, deltas, torch.tensor([0, 0, 0, 1, 1]))


def test_a_teacher_is_the_start_of_the_first_parents():
    taught = teacher()
    parameters = initial(Shape(6, 3, 3, 2), D, Member("teacher", 0, "x", taught))
    torch.testing.assert_close(parameters["decoder"][:2], taught.parents)
    for c, j, place in ((0, 0, 0), (2, 0, 2), (4, 1, 1)):
        row = parameters["child_decoder"][j, place] @ parameters["up"][j]
        torch.testing.assert_close(row, unit(taught.deltas[c]))
    torch.testing.assert_close(parameters["up"] @ parameters["up"].mT, torch.eye(3).expand(6, 3, 3))
    with pytest.raises(ValueError, match="up to 3 children, the SAE 6 and 2"):
        initial(Shape(6, 2, 2, 2), D, Member("teacher", 0, "x", taught))


def trainer(members=None, steps=30, shape=SHAPE):
    members = members or [
        Member("baseline", 0, "x"),
        Member("frozen", 0, "x", frozen_steps=10),
        Member("other", 1, "x"),
    ]
    data = normal(200, 3, seed=9) @ normal(3, D, seed=10) + 0.1 * normal(200, D, seed=11)
    return Trainer(members, shape, {"x": data - data.mean(0)}, Objective(), Schedule(steps, 64, 5e-3, 5, 10))


def test_stage_a_keeps_the_decoder_and_moves_the_encoder():
    training = trainer()
    before = {name: tensor.clone() for name, tensor in training.saes.parameters.items()}
    for _ in range(10):
        training.step()
    after = training.saes.parameters
    for name in ("decoder", "up", "child_decoder", "bias"):
        assert torch.equal(after[name][1], before[name][1]), name
        assert not torch.equal(after[name][0], before[name][0]), name
    assert not torch.equal(after["encoder"][1], before["encoder"][1])
    training.step()
    assert not torch.equal(after["decoder"][1], before["decoder"][1])


def test_training_lowers_the_loss_and_keeps_rows_at_length_one():
    training = trainer(steps=300)
    list(training.snapshots(()))
    lines = torch.stack([line for _, line in training.records])
    assert (lines[-1, 1] < 0.5 * lines[0, 1]).all()
    for name in ("decoder", "up", "child_decoder"):
        torch.testing.assert_close(training.saes.parameters[name].norm(dim=-1).max(), torch.tensor(1.0))


def test_a_stack_that_diverges_names_the_sae_and_what_to_change():
    training = trainer()
    training.saes.parameters["encoder"][1, 0] = float("inf")
    with pytest.raises(DivergedError, match=r"frozen: training diverged, .* after step 3; .* learning_rate \(0.005\)"):
        list(training.snapshots((3, 30)))


def test_a_member_does_not_depend_on_its_neighbours():
    together, alone = trainer(), trainer([Member("other", 1, "x")])
    for training in (together, alone):
        list(training.snapshots(()))
    for name, tensor in alone.saes.parameters.items():
        torch.testing.assert_close(tensor[0], together.saes.parameters[name][2], rtol=1e-4, atol=1e-5)


def test_a_resumed_training_ends_where_an_unbroken_one_does(tmp_path):
    whole, first, second = trainer(), trainer(), trainer()
    list(whole.snapshots(()))
    for step, _ in first.snapshots((8, 15, 30), 6, tmp_path / "checkpoint"):
        if step == 15:
            break
    assert not trainer(steps=31).resume(tmp_path / "checkpoint")
    assert second.resume(tmp_path / "checkpoint")
    assert second.done == 12
    assert [step for step, _ in second.snapshots((8, 15, 30))] == [8, 15, 30]
    for name, tensor in whole.saes.parameters.items():
        assert torch.equal(tensor, second.saes.parameters[name])
    assert [step for step, _ in second.records] == [step for step, _ in whole.records]


def test_a_flat_sae_is_one_without_children():
    flat = Shape(parents=12, children=0, rank=0, k=3)
    saes, x = stack(flat), normal(2, 10, D)
    codes, x_hat = saes.forward(x)
    assert codes.children is None
    assert torch.equal(x_hat.full, x_hat.top)
    list(trainer([Member("flat", 0, "x")], 5, flat).snapshots(()))
