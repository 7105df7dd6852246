"""Training of many SAEs from one pass: against a plain trainer, against training alone, and across an interruption."""

import hashlib
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_sae_gradients import plain_loss

from saeflow.activations import ActivationStore
from saeflow.config.saes import BatchTopK, Gated, JumpReLU, MatryoshkaBatchTopK, ReLU, TopK, Training
from saeflow.reproduce import child_seed
from saeflow.sae import precision, trainer
from saeflow.sae.initialization import Normalization, initial_parameters
from saeflow.sae.objectives import Objective
from saeflow.sae.optimizer import learning_rate, penalty_warmup
from saeflow.sae.precision import matrix_products
from saeflow.sae.stack import Member
from saeflow.sae.trainer import TrainedSAE, plan, train

D_IN, D_SAE, N = 16, 48, 2000

VARIANTS = {
    "relu": ReLU(architecture="relu", d_sae=D_SAE, penalty=0.5),
    "gated": Gated(architecture="gated", d_sae=D_SAE, penalty=0.5),
    "jumprelu": JumpReLU(architecture="jumprelu", d_sae=D_SAE, penalty=0.2, bandwidth=0.3),
    "topk": TopK(architecture="topk", d_sae=D_SAE, k=4),
    "batchtopk": BatchTopK(architecture="batchtopk", d_sae=D_SAE, k=4),
    "matryoshka": MatryoshkaBatchTopK(architecture="matryoshka", d_sae=D_SAE, k=4, prefixes=(8, 20, D_SAE)),
}


def sparse_mixture(n=N, seed=0, d_in=D_IN) -> torch.Tensor:
    """Rows [n, d_in]: few of 3 d_in directions each, a large mean, and an odd scale."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(3 * d_in, d_in, generator=generator), dim=1)
    z = torch.rand(n, 3 * d_in, generator=generator) * (torch.rand(n, 3 * d_in, generator=generator) < 0.06)
    return 7 * (z @ directions) + 3 + 0.05 * torch.randn(n, d_in, generator=generator)


@pytest.fixture(scope="module")
def store() -> ActivationStore:
    return ActivationStore.from_array(sparse_mixture())


def settings(**changes) -> Training:
    common = {"steps": 60, "batch_size": 128, "warmup_steps": 5, "sparsity_warmup_steps": 10, "dead_after": 2000}
    return Training(**(common | changes))


def tensors(result: TrainedSAE) -> dict[str, torch.Tensor]:
    return {name: getattr(result.sae, name).data for name in result.sae.shapes}


def assert_same_bytes(ours: list[TrainedSAE], theirs: list[TrainedSAE]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.curves == other.curves
        for name, tensor in tensors(mine).items():
            assert tensor.numpy().tobytes() == tensors(other)[name].numpy().tobytes(), f"{mine.member.name}: {name}"


def plain_training(spec, store, training, seed) -> tuple[float, dict[str, torch.Tensor]]:
    """Autograd and Adam as in the paper, one SAE: the last loss and the parameters, in normalised units."""
    normalization = Normalization.of(store.batches(500, epochs=1, shuffle=None), training.normalize)
    start = initial_parameters(spec, store, normalization, training, seed)
    q = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
    first, second = ({name: torch.zeros_like(tensor) for name, tensor in start.items()} for _ in range(2))
    for step, x in enumerate(store.batches(training.batch_size, child_seed(0, "batches"), steps=training.steps)):
        loss = plain_loss(spec, q, normalization(x), penalty_warmup(training, step))
        gradients = dict(zip(q, torch.autograd.grad(loss, list(q.values())), strict=True))
        W = q["W_dec"].data
        gradients["W_dec"] -= (gradients["W_dec"] * W).sum(1, keepdim=True) * W
        for name, g in gradients.items():
            first[name] = 0.9 * first[name] + 0.1 * g
            per_latent = training.second_moment == "latent" and g.dim() == 2
            square = g.square().mean(1, keepdim=True) if per_latent else g.square()
            second[name] = 0.999 * second[name] + 0.001 * square
            change = first[name] / (1 - 0.9 ** (step + 1)) / ((second[name] / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
            q[name].data -= learning_rate(training, step) * change
        W /= W.norm(dim=1, keepdim=True)
    return loss.item(), q


@pytest.mark.parametrize("second_moment", ["element", "latent"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_after_the_same_steps_is_that_of_a_plain_autograd_trainer(variant, second_moment, store):
    training = settings(steps=40, dead_after=10**6, second_moment=second_moment)
    loss, q = plain_training(VARIANTS[variant], store, training, seed=3)
    (result,) = train(store, [Member(variant, VARIANTS[variant], 3)], training)
    assert result.curves["step"][-1] == 39
    assert result.curves["loss"][-1] == pytest.approx(loss, rel=1e-3)
    torch.testing.assert_close(tensors(result)["W_dec"], q["W_dec"].data, rtol=0, atol=5e-3)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_member_becomes_the_same_whatever_it_is_stacked_with(variant, store):
    spec = VARIANTS[variant]
    other = spec.model_copy(update={"k": 7} if hasattr(spec, "k") else {"penalty": 0.9})
    members = [Member("a", spec, 0), Member("b", other, 1), Member("c", spec, 2)]
    training = settings(steps=30)
    assert plan(members, [store], training, "cpu") == [[0, 1, 2]]
    together = train(store, members, training)
    for member, mine in zip(members, together, strict=True):
        (alone,) = train(store, [member], training)
        for name, tensor in tensors(mine).items():
            torch.testing.assert_close(tensor, tensors(alone)[name], rtol=1e-3, atol=1e-4, msg=f"{member.name}: {name}")


def test_members_on_two_stores_are_stacked_and_become_what_they_become_alone(store):
    other = ActivationStore.from_array(sparse_mixture(seed=9) * 0.1)
    members = [Member("a", VARIANTS["topk"], 0, store=0), Member("b", VARIANTS["topk"], 0, store=1)]
    training = settings(steps=30)
    together = train([store, other], members, training)
    for source, mine in zip((store, other), together, strict=True):
        (alone,) = train(source, [Member("x", VARIANTS["topk"], 0)], training)
        torch.testing.assert_close(tensors(mine)["W_enc"], tensors(alone)["W_enc"], rtol=1e-3, atol=1e-4)


def test_members_that_do_not_fit_together_share_the_pass_in_stacks_of_their_own():
    def member(spec, store=0):
        return Member("x", spec, 0, store)

    wide = VARIANTS["topk"].model_copy(update={"d_sae": 64})
    specs = [VARIANTS["topk"], VARIANTS["relu"], wide, VARIANTS["topk"]]
    stores = [ActivationStore.from_array(torch.zeros(4, D_IN))]
    assert plan([member(s) for s in specs], stores, settings(), "cpu") == [[0, 3], [1], [2]]
    large = [VARIANTS["topk"].model_copy(update={"d_sae": 8192})] * 3
    assert plan([member(s) for s in large], stores, settings(batch_size=4096), "cpu") == [[0], [1], [2]]


@pytest.mark.parametrize("variant", ["relu", "topk", "jumprelu", "gated"])
def test_a_batch_in_parts_trains_what_the_whole_batch_trains(variant, store):
    members = [Member(name, VARIANTS[variant], i) for i, name in enumerate("ab")]
    training = settings(steps=30, dead_after=10**6)
    in_parts = train(store, members, training.model_copy(update={"accumulate": 4}))
    for whole, mine in zip(train(store, members, training), in_parts, strict=True):
        assert mine.curves["l0"] == pytest.approx(whole.curves["l0"], rel=1e-2)
        for name, tensor in tensors(mine).items():
            torch.testing.assert_close(tensor, tensors(whole)[name], rtol=1e-2, atol=1e-3, msg=f"{name}")


def test_memory_that_does_not_suffice_halves_the_parts_of_a_batch(store, monkeypatch, caplog):
    members, training = [Member("a", VARIANTS["batchtopk"], 0)], settings(steps=30)
    whole, inside = Objective.gradients, []

    def with_little_memory(self, x, **options):
        inside.append(x.shape[1])
        if x.shape[1] > 32:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return whole(self, x, **options)

    monkeypatch.setattr(Objective, "gradients", with_little_memory)
    little = train(store, members, training)
    assert inside[:4] == [128, 64, 32, 32]
    assert set(inside[3:]) == {32}
    assert "a: out of memory at step 0; batches of 128 in 4 parts from here on" in caplog.text
    monkeypatch.undo()
    assert_same_bytes(little, train(store, members, training.model_copy(update={"accumulate": 4})))


def test_too_little_memory_for_an_uneven_part_is_an_error(store, monkeypatch):
    def never(self, x, **options):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(Objective, "gradients", never)
    with pytest.raises(torch.OutOfMemoryError):
        train(store, [Member("a", VARIANTS["topk"], 0)], settings(steps=20))


def multiplies_in_bfloat16() -> bool:
    try:
        with matrix_products("bfloat16", "cpu"):
            return True
    except ValueError:
        return False


@pytest.mark.skipif(not multiplies_in_bfloat16(), reason="this processor does not multiply in bfloat16")
@pytest.mark.parametrize("variant", VARIANTS)
def test_bfloat16_products_train_an_sae_as_good(variant, store):
    training = settings(steps=200, learning_rate=5e-3)
    ours, theirs = (
        train(store, [Member("a", VARIANTS[variant], 0)], training.model_copy(update={"precision": precision}))[0]
        for precision in ("float32", "bfloat16")
    )
    assert torch.get_float32_matmul_precision() == "highest"
    assert not tensors(ours)["W_enc"].equal(tensors(theirs)["W_enc"])
    assert theirs.curves["explained_variance"][-1] == pytest.approx(ours.curves["explained_variance"][-1], abs=0.02)
    assert tensors(theirs)["W_enc"].dtype == torch.float32


def test_bfloat16_products_that_are_not_to_be_had_are_refused(store, monkeypatch):
    members, training = [Member("a", VARIANTS["topk"], 0)], settings(steps=20, precision="bfloat16")
    with (
        pytest.raises(ValueError, match=r"on a GPU use compute\.matmul_precision: tf32"),
        matrix_products("bfloat16", "cuda"),
    ):
        pass
    monkeypatch.setattr(precision, "_rounds", lambda: False)
    with pytest.raises(ValueError, match="needs a processor with AMX"):
        train(store, members, training)
    assert torch.get_float32_matmul_precision() == "highest"


class Interrupting:
    """A store whose stream ends in an error."""

    def __init__(self, store: ActivationStore, after: int) -> None:
        self._store, self._after, self.shape, self.rows = store, after, store.shape, store.rows

    def batches(self, *arguments, **options):
        inner = self._store.batches(*arguments, **options)
        after = self._after

        class Stream:
            state_dict, load_state_dict = inner.state_dict, inner.load_state_dict

            def __iter__(self):
                return self

            def __next__(self):
                if options.get("steps") and inner.position == after:
                    raise KeyboardInterrupt
                return next(inner)

        return Stream()


@pytest.mark.parametrize("second_moment", ["element", "latent"])
def test_a_resumed_training_has_the_bytes_of_an_uninterrupted_one(second_moment, store, tmp_path, caplog):
    specs = list(VARIANTS.values())
    specs += [spec.model_copy(update={"dead_latents": "resample"}) for spec in (specs[0], specs[3])]
    specs = [
        s.model_copy(update={"d_sae": 100, "prefixes": (20, 100)} if hasattr(s, "prefixes") else {"d_sae": 100})
        for s in specs
    ]
    members = [Member(str(i), spec, i) for i, spec in enumerate(specs)]
    training = settings(steps=50, dead_after=300, checkpoint_steps=17, second_moment=second_moment)
    path = tmp_path / "state.safetensors"
    whole = train(store, members, training)
    assert any(max(result.curves["dead_share"]) > 0 for result in whole)
    with pytest.raises(KeyboardInterrupt):
        train(Interrupting(store, 41), members, training, checkpoint=path)
    assert path.is_file()
    caplog.set_level(logging.INFO)
    resumed = train(store, members, training, checkpoint=path)
    assert "going on after step 34" in caplog.text
    assert not path.exists()
    assert_same_bytes(whole, resumed)


@pytest.mark.parametrize(
    "change", [{"learning_rate": 5e-3}, {"second_moment": "latent"}], ids=lambda change: next(iter(change))
)
def test_a_checkpoint_of_another_training_is_not_taken_up(change, store, tmp_path, caplog):
    members = [Member("a", VARIANTS["topk"], 0)]
    path = tmp_path / "state.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(Interrupting(store, 15), members, settings(steps=20, checkpoint_steps=10), checkpoint=path)
    other = settings(steps=20, **change)
    assert_same_bytes(train(store, members, other, checkpoint=path), train(store, members, other))
    assert "other settings" in caplog.text


def test_a_checkpoint_on_other_activations_is_not_taken_up(tmp_path, caplog):
    def written(name, seed):
        with ActivationStore.create(tmp_path / name, D_IN) as writer:
            writer.append(sparse_mixture(seed=seed))
        return ActivationStore.open(tmp_path / name)

    members, training = [Member("a", VARIANTS["topk"], 0)], settings(steps=20, checkpoint_steps=10)
    path = tmp_path / "state.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(Interrupting(written("before", 0), 15), members, training, checkpoint=path)
    other = written("after", 1)
    assert_same_bytes(train(other, members, training, checkpoint=path), train(other, members, training))
    assert "other settings" in caplog.text


@pytest.mark.parametrize("damage", ["truncated", "empty", "another file"])
def test_a_damaged_checkpoint_costs_steps_and_no_result(damage, store, tmp_path, caplog):
    members, training = [Member("a", VARIANTS["topk"], 0)], settings(steps=20, checkpoint_steps=10)
    path = tmp_path / "state.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(Interrupting(store, 15), members, training, checkpoint=path)
    content = path.read_bytes()
    path.write_bytes({"truncated": content[:-1], "empty": b"", "another file": b"{}" * 100}[damage])
    assert_same_bytes(train(store, members, training, checkpoint=path), train(store, members, training))
    assert f"{path}: truncated or no checkpoint" in caplog.text


def digest() -> str:
    """Of a short training of every variant."""
    store = ActivationStore.from_array(sparse_mixture(500))
    results = train(store, [Member(name, spec, 0) for name, spec in VARIANTS.items()], settings(steps=12))
    parts = [tensor.numpy().tobytes() for result in results for tensor in tensors(result).values()]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def test_bytes_do_not_depend_on_the_process():
    folders = [str(Path(__file__).parents[2] / "scripts"), str(Path(__file__).parent)]
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(folders)}
    code = "import torch; torch.set_num_threads(1); from test_sae_trainer import digest; print(digest())"
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.split()[-1] == digest()


@pytest.mark.parametrize("normalize", [True, False])
def test_the_saved_sae_is_in_the_units_of_the_store(normalize, store):
    training = settings(steps=150, normalize=normalize, learning_rate=1e-2)
    x = store.rows(slice(0, 500))
    for result in train(store, [Member(name, spec, 0) for name, spec in VARIANTS.items()], training):
        error = (result.sae(x) - x).square().sum() / (x - x.mean(0)).square().sum()
        assert error < 0.5, result.member.name
        assert result.sae.unit_norm_decoder


def test_batchtopk_is_saved_with_a_threshold_that_keeps_its_l0(store):
    training = settings(steps=250, learning_rate=5e-3)
    members = [Member(name, VARIANTS[name], 0) for name in ("batchtopk", "matryoshka")]
    for result in train(store, members, training):
        l0 = (result.sae.encode(store.rows(slice(0, N))) > 0).sum(1).float().mean().item()
        assert l0 == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize("revival", ["auxk", "resample"])
@pytest.mark.parametrize("variant", ["relu", "topk", "jumprelu", "gated"])
def test_dead_latents_are_revived(variant, revival, store):
    spec = VARIANTS[variant].model_copy(update={"auxk_coefficient": 1.0})
    training = settings(steps=200, dead_after=1500, learning_rate=1e-2, init="data")
    alive = {}
    for how in ("none", revival):
        stack = trainer.Stack(
            [Member("x", spec.model_copy(update={"dead_latents": how}), 0)],
            [store],
            {0: Normalization.of(store.batches(500, epochs=1, shuffle=None), True)},
            training,
        )
        stack.objective.parameters[stack.objective.bias][:, :20] = -7.0
        with torch.no_grad():
            for step, x in enumerate(store.batches(128, 0, steps=200)):
                stack.step(stack.normalizations[0](x)[None], step)
        alive[how] = int((~stack.counter.dead[0, :20]).sum())
    assert alive["none"] <= 3
    assert alive[revival] >= 15


def test_a_spliced_loss_reaches_the_reconstruction_in_the_units_of_the_store(store):
    # Its gradient is proportional to that of the reconstruction, and Adam does not see the factor.
    seen = []

    def squared_error(x_hat, x, members):
        seen.append([member.name for member in members])
        difference = x_hat - x
        return difference.square().sum(2).mean(1), 2 * difference / x.shape[1]

    training = settings(steps=20)
    spliced = [
        Member(str(i), VARIANTS["topk"].model_copy(update={"splice_kl": w}), 0) for i, w in enumerate((30.0, 3.0))
    ]
    with_splice = train(store, spliced, training, splice=squared_error)
    (without,) = train(store, [Member("plain", VARIANTS["topk"], 0)], training)
    assert seen[0] == ["0", "1"]
    for result, weight in zip(with_splice, (30.0, 3.0), strict=True):
        for name, tensor in tensors(result).items():
            torch.testing.assert_close(tensor, tensors(without)[name], rtol=1e-3, atol=1e-3)
        unit = result.curves["reconstruction"][-1] / without.curves["loss"][-1]
        assert unit == pytest.approx(1, rel=1e-2)
        variance = (sparse_mixture() - sparse_mixture().mean(0)).square().sum(1).mean().item()
        expected = without.curves["loss"][-1] * (1 + weight * variance / D_IN)
        assert result.curves["loss"][-1] == pytest.approx(expected, rel=1e-2)


def test_a_penalised_member_leaves_the_dense_route_when_it_has_become_sparse(store):
    normalization = Normalization.of(store.batches(500, epochs=1, shuffle=None), True)
    spec = VARIANTS["relu"].model_copy(update={"penalty": 3.0})
    stack = trainer.Stack([Member("x", spec, 0)], [store], {0: normalization}, settings(steps=100, learning_rate=1e-2))
    routes = []
    with torch.no_grad():
        for step, x in enumerate(store.batches(128, 0, steps=100)):
            routes.append(stack.dense)
            stack.step(normalization(x)[None], step, record=True)
    assert routes[0]
    assert not routes[-1]
    l0 = stack.curves(0)["l0"]
    assert routes[17:81:16] == [l0[step] / D_SAE > 0.12 for step in range(16, 80, 16)]


def test_normalization_is_exact_with_a_large_mean():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5000, 8, generator=generator) + 1000
    exact = x.double()
    found = Normalization.of(x.split(777), normalize=True)
    scale = (8 / (exact - exact.mean(0)).square().sum(1).mean()).sqrt()
    assert found.scale == pytest.approx(scale.item(), rel=1e-9)
    torch.testing.assert_close(found.mean, exact.mean(0).float(), rtol=0, atol=0)
    assert found(x).square().sum(1).mean().item() == pytest.approx(8, rel=1e-4)
    torch.testing.assert_close(found.undo(found(x)), x)


def test_decoder_rows_start_as_centred_activations_if_asked_for(store):
    training = settings(init="data")
    normalization = Normalization.of(store.batches(500, epochs=1, shuffle=None), True)
    first = initial_parameters(VARIANTS["topk"], store, normalization, training, 5)
    rows = torch.nn.functional.normalize(normalization(store.rows(slice(0, N))), dim=1)
    assert ((first["W_dec"] @ rows.T).amax(1) > 0.99).all()
    again = initial_parameters(VARIANTS["relu"], store, normalization, training, 5)
    assert torch.equal(first["W_dec"], again["W_dec"])
    assert torch.equal(first["W_enc_T"], first["W_dec"])


def test_more_latents_than_activations_still_start_apart():
    few = ActivationStore.from_array(sparse_mixture(10))
    normalization = Normalization.of(few.batches(10, epochs=1, shuffle=None), True)
    rows = initial_parameters(VARIANTS["topk"], few, normalization, settings(init="data"), 0)["W_dec"]
    assert ((rows @ rows.T).fill_diagonal_(0) < 0.9999).all()


def test_curves_have_a_point_for_every_recorded_step(store):
    (result,) = train(store, [Member("x", VARIANTS["topk"], 0)], settings(steps=33))
    assert result.curves["step"] == list(range(33))
    assert {len(column) for column in result.curves.values()} == {33}
    assert result.curves["l0"][-1] == pytest.approx(4)
    assert result.curves["loss"][-1] < result.curves["loss"][0]


@pytest.mark.parametrize(
    ("member", "problem"),
    [
        (Member("a", VARIANTS["topk"], 0, store=2), "a: store 2, but there are 1"),
        (Member("b", ReLU(architecture="relu", d_sae=8, target_l0=2), 0), "b: penalty is not set; calibrate"),
        (Member("c", VARIANTS["topk"].model_copy(update={"splice_kl": 1.0}), 0), "c: splice_kl is 1"),
    ],
)
def test_a_member_that_cannot_be_trained_is_named(member, problem, store):
    with pytest.raises(ValueError, match=problem):
        train(store, [member], settings())


def test_activations_without_spread_are_refused():
    constant = ActivationStore.from_array(torch.ones(50, D_IN))
    with pytest.raises(ValueError, match="all 50 activation vectors are equal"):
        train(constant, [Member("x", VARIANTS["topk"], 0)], settings())


@pytest.mark.parametrize("normalize", [True, False])
def test_activations_that_are_not_finite_are_named_by_their_row(normalize):
    for value in (float("nan"), float("inf")):
        rows = torch.randn(50, D_IN, generator=torch.Generator().manual_seed(0))
        rows[33, 2] = value
        with pytest.raises(ValueError, match=r"row 33 \(row 33\) holds a value that is not finite; capture the store"):
            train(ActivationStore.from_array(rows), [Member("x", VARIANTS["topk"], 0)], settings(normalize=normalize))


def test_step_size_rises_and_falls_linearly():
    training = settings(steps=100, warmup_steps=10, decay_share=0.2, learning_rate=1.0, sparsity_warmup_steps=4)
    rates = [learning_rate(training, step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert rates[10:80] == [1.0] * 70
    assert rates[80:] == pytest.approx([1 - i / 20 for i in range(20)])
    assert [penalty_warmup(training, step) for step in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]
