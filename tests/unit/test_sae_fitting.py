"""All SAEs of a study: the target L0 is met, draws are named, curves are tidy, an interruption costs little."""

import logging

import pytest
import torch

from saeflow import config
from saeflow.activations import ActivationStore
from saeflow.models.classifiers import StackedClassifier
from saeflow.models.splicing import SplicedOutput
from saeflow.sae import architectures, fitting
from saeflow.sae.stack import Member, Stack


def store(path, seed=0, n=1500, d=12, n_atoms=24):
    """Sparse mixtures of random directions: something that an SAE can find."""
    generator = torch.Generator().manual_seed(seed)
    atoms = torch.nn.functional.normalize(torch.randn(n_atoms, d, generator=generator), dim=1)
    z = torch.rand(n, n_atoms, generator=generator) * (torch.rand(n, n_atoms, generator=generator) < 0.1)
    with ActivationStore.create(
        path, d=d, dtype="float32", chunk_rows=512, source_columns=("row",), metadata={}
    ) as out:
        out.append(z @ atoms, torch.arange(n))
    return ActivationStore.open(path)


def saes(**variants) -> config.SAEs:
    training = {"steps": 250, "batch_size": 128, "learning_rate": 5e-3, "warmup_steps": 10, "sparsity_warmup_steps": 50}
    return config.SAEs.model_validate({"variants": variants, "training": training})


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    stores = [store(folder / str(seed), seed) for seed in (0, 1)]
    spec = saes(
        relu={"architecture": "relu", "d_sae": 32, "target_l0": 5},
        topk={"architecture": "topk", "d_sae": 32, "k": 5},
        batchtopk={"architecture": "batchtopk", "d_sae": 32, "k": 5},
    )
    return stores, dict(fitting.fit(stores, spec, seed=0))


def test_every_store_variant_and_seed_is_there(fitted):
    assert set(fitted[1]) == {fitting.Key(i, v, 0) for i in (0, 1) for v in ("relu", "topk", "batchtopk")}


def test_every_sae_has_its_target_l0_on_training_rows(fitted):
    stores, results = fitted
    for key, result in results.items():
        rows = fitting.calibration_rows(stores[key.store], 0)
        # TopK keeps at most k: a row with fewer positive preactivations has fewer.
        assert fitting.mean_l0(result.sae, rows) == pytest.approx(5, rel=0.05 if key.variant == "topk" else 2e-3), key


def test_rows_kept_for_calibration_set_the_l0_and_are_not_trained_on(tmp_path):
    spec = saes(
        relu={"architecture": "relu", "d_sae": 32, "target_l0": 5},
        batchtopk={"architecture": "batchtopk", "d_sae": 32, "k": 5},
    )
    spec = spec.model_copy(update={"training": spec.training.model_copy(update={"calibration_share": 0.2})})
    opened = store(tmp_path / "a")
    results = dict(fitting.fit([opened], spec, seed=0))
    rest, aside = opened.split(0.2)
    kept = opened.rows(aside)
    for key, result in results.items():
        assert fitting.mean_l0(result.sae, kept) == pytest.approx(5, rel=1e-2), key
    without = spec.model_copy(update={"training": spec.training.model_copy(update={"calibration_share": 0.0})})
    on_the_rest = dict(fitting.fit([rest], without, seed=0))
    for key, result in results.items():
        if key.variant == "batchtopk":
            assert result.sae.W_dec.equal(on_the_rest[key].sae.W_dec)
            assert not result.sae.threshold.equal(on_the_rest[key].sae.threshold)


def test_batchtopk_and_shifted_relu_become_jumprelu(fitted):
    kinds = {key.variant: type(result.sae) for key, result in fitted[1].items()}
    assert kinds == {
        "relu": architectures.JumpReLU,
        "topk": architectures.TopK,
        "batchtopk": architectures.JumpReLU,
    }


def test_an_sae_does_not_depend_on_which_others_are_trained(fitted):
    stores, results = fitted
    alone = dict(fitting.fit(stores[:1], saes(topk={"architecture": "topk", "d_sae": 32, "k": 5}), seed=0))
    key = fitting.Key(0, "topk", 0)
    torch.testing.assert_close(alone[key].sae.W_dec, results[key].sae.W_dec, atol=1e-3, rtol=1e-3)


def test_an_interrupted_fit_goes_on_inside_its_pass(fitted, tmp_path, monkeypatch, caplog):
    stores = fitted[0][:1]
    spec = saes(
        topk={"architecture": "topk", "d_sae": 32, "k": 5}, relu={"architecture": "relu", "d_sae": 32, "target_l0": 5}
    )
    spec = spec.model_copy(update={"training": spec.training.model_copy(update={"checkpoint_steps": 50})})
    path = tmp_path / "curves.checkpoint"
    whole = dict(fitting.fit(stores, spec, seed=0))

    steps = []
    step = Stack.step

    def interrupted(stack, *arguments, **options):
        steps.append(stack)
        if len(steps) == 250 + 130:
            raise KeyboardInterrupt
        return step(stack, *arguments, **options)

    monkeypatch.setattr(Stack, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        dict(fitting.fit(stores, spec, seed=0, checkpoint=path))
    assert [p.name for p in tmp_path.iterdir()] == ["curves.checkpoint-2"]
    (tmp_path / "curves.checkpoint-99").touch()
    caplog.set_level(logging.INFO)
    resumed = dict(fitting.fit(stores, spec, seed=0, checkpoint=path))
    assert "curves.checkpoint-2: going on after step 100" in caplog.text
    assert list(tmp_path.iterdir()) == []
    for key, result in whole.items():
        assert resumed[key].curves == result.curves
        assert all(torch.equal(getattr(resumed[key].sae, n), getattr(result.sae, n)) for n in result.sae.shapes)


def test_curves_have_a_row_per_recorded_step(fitted):
    result = fitted[1][fitting.Key(0, "topk", 0)]
    rows = list(fitting.curves(result))
    assert {"step", "loss", "l0", "explained_variance"} <= set(rows[0])
    assert [row["step"] for row in rows] == result.curves["step"]


def test_the_loss_of_the_spliced_output_is_kl_and_its_gradient_is_autograds():
    networks = StackedClassifier("SimpleNN", (4, 4), 3, n_members=2).initialize([0, 1]).double()
    splice = SplicedOutput(networks, "last.pre")
    spec = config.TopK(architecture="topk", d_sae=4, k=1, splice_kl=1)
    members = [Member("a", spec, 0, store=1), Member("b", spec, 0, store=0)]
    x, x_hat = torch.randn(2, 2, 7, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    loss, gradient = splice(x_hat, x, members)

    def kl(v: torch.Tensor) -> torch.Tensor:
        own = networks.select([1, 0])
        p, q = (torch.distributions.Categorical(logits=own.run_from("last.pre", value)) for value in (x, v))
        return torch.distributions.kl_divergence(p, q).mean(-1)

    torch.testing.assert_close(loss, kl(x_hat).detach())
    h = 1e-6 * torch.randn(x_hat.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        (gradient * h).sum(), (kl(x_hat + h) - kl(x_hat - h)).sum().detach() / 2, rtol=1e-5, atol=0
    )
