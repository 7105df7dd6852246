"""All SAEs of a study: the target L0 is met, draws are named, curves are tidy, an interruption costs little."""

import logging

import pytest
import torch

from saeflow.activations import ActivationStore
from saeflow.config.saes import SAEs, TopK
from saeflow.models.classifiers import StackedClassifier
from saeflow.models.splicing import SplicedOutput
from saeflow.sae import architectures, fitting, formats
from saeflow.sae.stack import Member, Stack
from saeflow.sae.trainer import train


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


def saes(**variants) -> SAEs:
    training = {"steps": 250, "batch_size": 128, "learning_rate": 5e-3, "warmup_steps": 10, "sparsity_warmup_steps": 50}
    penalties = {name: spec["penalty"] for name, spec in variants.items() if "penalty" in spec}
    within = {name: spec | {"penalty": 1.0} if name in penalties else spec for name, spec in variants.items()}
    study = SAEs.model_validate({"variants": within, "training": training})
    # Tests have penalties beyond what a study may ask for, so that a training diverges.
    given = {name: study.variants[name].model_copy(update={"penalty": penalty}) for name, penalty in penalties.items()}
    return study.model_copy(update={"variants": study.variants | given})


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


@pytest.mark.parametrize("kind", ["topk", "batchtopk", "matryoshka"])
@pytest.mark.parametrize(("d_sae", "k"), [(32, 32), (32, 20), (1, 1)])
def test_a_k_beyond_what_can_be_active_takes_all_that_is(tmp_path, kind, d_sae, k):
    """Reference: BatchTopK of a batch with fewer than b k positive preactivations is ReLU, as TopK of d_sae is."""
    spec = {"architecture": kind, "d_sae": d_sae, "k": k}
    if kind == "matryoshka":
        spec["prefixes"] = sorted({max(1, d_sae // 4), d_sae})
    opened = store(tmp_path / "a")
    study = saes(v=spec)
    study = study.model_copy(update={"training": study.training.model_copy(update={"steps": 60})})
    [(_, result)] = fitting.fit([opened], study, seed=0)
    x = opened.rows(slice(None))
    if kind != "topk" or k == d_sae:
        torch.testing.assert_close(result.sae.encode(x), result.sae.preactivations(x).relu(), rtol=0, atol=0)
    assert fitting.mean_l0(result.sae, x) < k


@pytest.mark.parametrize("dead", ["auxk", "resample"])
def test_a_training_that_diverges_is_told_with_what_to_change(tmp_path, dead):
    given = {
        "topk": {"k": 4},
        "batchtopk": {"k": 4},
        "matryoshka": {"k": 4, "prefixes": [8, 32]},
        "relu": {"penalty": 0.1},
        "gated": {"penalty": 0.1},
        "jumprelu": {"penalty": 0.1},
    }
    variants = {n: {"architecture": n, "d_sae": 32, "dead_latents": dead, **own} for n, own in given.items()}
    variants |= {f"{n}_found": {"architecture": n, "d_sae": 32, "target_l0": 4} for n in ("relu", "gated", "jumprelu")}
    study = saes(**variants)
    for rate in (1e38, 1e3):
        training = study.training.model_copy(update={"steps": 60, "learning_rate": rate, "dead_after": 500})
        with pytest.raises(fitting.FittingError) as ended:
            list(fitting.fit([store(tmp_path / f"{rate:g}")], study.model_copy(update={"training": training}), seed=0))
        said = str(ended.value).splitlines()
        # Decoder rows keep length 1: an SAE without a penalty can reconstruct badly forever and stay finite.
        assert len(said) == len(variants) if rate == 1e38 else len(said) > 2
        for line in said:
            assert "training diverged" in line
            assert f"try a smaller training.learning_rate ({rate:.3g})" in line
            assert "target_l0" not in line
            assert (", penalty (0.1)" in line) == (line.split("-")[0] in ("relu", "gated", "jumprelu"))


def test_an_sae_that_fails_costs_none_of_the_others(tmp_path):
    """One diverges, one misses its target, one does not pass; the others come out and keep the bytes that they had."""
    variants = {
        "topk": {"architecture": "topk", "d_sae": 32, "k": 5},
        "wild": {"architecture": "relu", "d_sae": 24, "penalty": 1e38},
        "relu": {"architecture": "relu", "d_sae": 32, "target_l0": 5},
        "full": {"architecture": "gated", "d_sae": 24, "target_l0": 24},
        "small": {"architecture": "batchtopk", "d_sae": 16, "k": 5},
    }
    study = saes(**variants)
    opened = store(tmp_path / "a")

    def check(result, training):
        if result.sae.d_sae == 16:
            raise ValueError("small-s0, store 0: too small")
        return result

    folders = {fitting.Key(0, name, 0): tmp_path / f"{name}.finished" for name in variants}
    found = {}

    def save():
        for key, result in fitting.fit([opened], study, seed=0, check=check, finished=folders):
            found[key.variant] = result

    with pytest.raises(fitting.FittingError) as ended:
        save()
    assert set(found) == {"topk", "relu"}
    wild, small, full, kept = str(ended.value).splitlines()
    assert "wild-s0, store 0: training diverged, " in wild
    assert ", penalty (1e+38), or more training.warmup_steps (10)" in wild
    assert small == "small-s0, store 0: too small"
    assert full.startswith("full-s0, store 0: target_l0 24 is outside the L0 reached, ")
    assert full.endswith(
        "; set target_l0 to one that was reached, give a penalty instead of it, or train for more steps"
    )
    assert kept.startswith(f"2 other SAEs are done and kept ({tmp_path / 'topk.finished'}, ...)")
    assert {path.name for path in tmp_path.glob("*.finished")} == {"topk.finished", "relu.finished"}
    torch.testing.assert_close(formats.load(tmp_path / "topk.finished").W_dec, found["topk"].sae.W_dec, rtol=0, atol=0)

    mended = {name: spec for name, spec in variants.items() if name not in ("full", "small")}
    mended["wild"] = mended["wild"] | {"penalty": 1e-3}
    study = saes(**mended).model_copy(update={"training": study.training})
    trained = []
    folders = {key: folder for key, folder in folders.items() if key.variant in mended}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "train", lambda *a, **k: trained.append([m.name for m in a[1]]) or train(*a, **k))
        again = {key.variant: r for key, r in fitting.fit([opened], study, seed=0, finished=folders)}
    assert trained == [["wild-s0, store 0"]]
    assert list(tmp_path.glob("*.finished")) == []
    for name, result in again.items():
        if name in found:
            assert result.curves == found[name].curves
            assert result.member.spec == found[name].member.spec
            assert all(torch.equal(getattr(result.sae, n), getattr(found[name].sae, n)) for n in result.sae.shapes)
    whole = {key.variant: r for key, r in fitting.fit([opened], study, seed=0)}
    for name in mended:
        assert all(
            torch.equal(getattr(again[name].sae, n), getattr(whole[name].sae, n)) for n in whole[name].sae.shapes
        )


def test_an_sae_that_was_kept_is_not_taken_for_one_of_other_settings(tmp_path, caplog):
    variants = {
        "topk": {"architecture": "topk", "d_sae": 32, "k": 5},
        "wild": {"architecture": "relu", "d_sae": 24, "penalty": 1e38},
    }
    opened = store(tmp_path / "a")
    folders = {fitting.Key(0, name, 0): tmp_path / f"{name}.finished" for name in variants}
    study = saes(**variants)
    study = study.model_copy(update={"training": study.training.model_copy(update={"steps": 100})})
    caplog.set_level(logging.INFO)

    def run(study, seed=0, opened=opened):
        with pytest.raises(fitting.FittingError):
            list(fitting.fit([opened], study, seed=seed, finished=folders))
        text = caplog.text
        caplog.clear()
        return text

    run(study)
    assert f"topk-s0, store 0: taken from {tmp_path / 'topk.finished'}" in run(study)
    other = study.model_copy(update={"training": study.training.model_copy(update={"learning_rate": 4e-3})})
    for changed in (
        {"study": other},
        {"study": study, "seed": 1},
        {"study": study, "opened": store(tmp_path / "b", 1)},
    ):
        assert "topk.finished: of other settings or activations; trained anew" in run(**changed)
        run(study)
    (tmp_path / "topk.finished" / formats.WEIGHTS).write_bytes(b"cut off")
    assert "truncated or not safetensors" in run(study)
    assert "taken from" in run(study)


def test_activations_that_are_no_numbers_are_named_by_their_place(tmp_path):
    rows = torch.randn(300, 12, generator=torch.Generator().manual_seed(0))
    rows[207, 3] = float("nan")
    with ActivationStore.create(tmp_path / "s", d=12, chunk_rows=128, source_columns=("document", "token")) as out:
        out.append(rows.nan_to_num(), torch.stack([torch.arange(300) // 10, torch.arange(300) % 10], 1))
    whole = ActivationStore.open(tmp_path / "s")
    (chunk,) = (p for p in (tmp_path / "s").rglob("*") if p.is_file() and whole.place(207).startswith(f"{p}:"))
    content = bytearray(chunk.read_bytes())
    content[79 * 12 * 4 : 79 * 12 * 4 + 4] = b"\x00\x00\xc0\x7f"
    chunk.write_bytes(content)
    opened = ActivationStore.open(tmp_path / "s", check_digests=False)
    study = saes(topk={"architecture": "topk", "d_sae": 32, "k": 5})
    for share in (0.0, 0.5):  # Among the rows that are trained on, and among those set aside.
        training = study.training.model_copy(update={"calibration_share": share})
        with pytest.raises(
            ValueError, match=r"row 79 \(document 20, token 7\) holds a value that is not finite"
        ) as said:
            list(fitting.fit([opened], study.model_copy(update={"training": training}), seed=0))
        assert str(chunk) in str(said.value)
    in_memory = ActivationStore.from_array(rows, metadata={"hook_point": "last.pre"})
    with pytest.raises(ValueError, match=r"activations in memory \{'hook_point': 'last.pre'\}: row 207 \(row 207\)"):
        list(fitting.fit([in_memory], study, seed=0))


def test_curves_have_a_row_per_recorded_step(fitted):
    result = fitted[1][fitting.Key(0, "topk", 0)]
    rows = list(fitting.curves(result))
    assert {"step", "loss", "l0", "explained_variance"} <= set(rows[0])
    assert [row["step"] for row in rows] == result.curves["step"]


def test_the_loss_of_the_spliced_output_is_kl_and_its_gradient_is_autograds():
    networks = StackedClassifier("SimpleNN", (4, 4), 3, n_members=2).initialize([0, 1]).double()
    splice = SplicedOutput(networks, "last.pre")
    spec = TopK(architecture="topk", d_sae=4, k=1, splice_kl=1)
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
