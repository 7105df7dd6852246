"""Which job trains which SAE changes none of them."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import saeflow
from saeflow.activations import ActivationStore
from saeflow.config.saes import SAEs
from saeflow.sae import fitting, sharing

N_STORES = 2


def saes(shards=1, **training) -> SAEs:
    """Two kinds of two k each, and two that are searched for; sizes that no vector register divides."""
    common = {"steps": 40, "batch_size": 50, "learning_rate": 5e-3, "warmup_steps": 5, "sparsity_warmup_steps": 10}
    variants = {
        "topk": {"architecture": "topk", "d_sae": 30, "k": 3},
        "topk_more": {"architecture": "topk", "d_sae": 30, "k": 5},
        "batchtopk": {"architecture": "batchtopk", "d_sae": 30, "k": 3},
        "wide": {"architecture": "batchtopk", "d_sae": 44, "k": 3},
        "relu": {"architecture": "relu", "d_sae": 30, "target_l0": 11},
        "relu_given": {"architecture": "relu", "d_sae": 30, "penalty": 0.5},
    }
    return SAEs.model_validate({"variants": variants, "seeds": [0, 3], "training": common | training, "shards": shards})


@pytest.mark.parametrize("shards", [1, 2, 3, 5, 100])
def test_every_sae_is_in_one_job_and_jobs_have_whole_stacks(shards):
    spec = saes(shards)
    found = sharing.jobs(spec, N_STORES, "cpu")
    trained = [key for job in found for key in job]
    assert sorted(map(str, trained)) == sorted(map(str, sharing.keys_of(spec, N_STORES)))
    stacks = sharing.groups(spec, N_STORES, "cpu")
    assert len(found) == min(shards, len(stacks))
    for stack in stacks:
        assert len([job for job in found if set(stack) & set(job)]) == 1


def test_one_job_has_all_saes_in_the_studys_order():
    assert sharing.jobs(saes(), N_STORES, "cpu") == [sharing.keys_of(saes(), N_STORES)]


def test_a_study_without_saes_has_no_job():
    assert sharing.jobs(SAEs(), N_STORES, "cpu") == []


def test_stacks_hold_saes_of_one_size_searched_or_given():
    for stack in sharing.groups(saes(), N_STORES, "cpu"):
        specs = [saes().variants[key.variant] for key in stack]
        assert len({(type(spec), spec.d_sae, sharing.is_searched(spec)) for spec in specs}) == 1


def test_large_saes_are_each_a_stack_so_that_any_number_of_jobs_can_share_them():
    spec = SAEs.model_validate(
        {
            "variants": {"topk": {"architecture": "topk", "d_sae": 1 << 14, "k": 3}},
            "seeds": list(range(6)),
            "training": {"batch_size": 4096},
            "shards": 6,
        }
    )
    for device in ("cpu", "cuda"):
        assert [len(job) for job in sharing.jobs(spec, 1, device)] == [1] * 6


def test_jobs_have_about_the_same_to_do():
    sizes = {f"s{i}": {"architecture": "topk", "d_sae": 1024 * (i + 1), "k": 3} for i in range(8)}
    spec = SAEs.model_validate({"variants": sizes, "shards": 3})
    totals = [sum(spec.variants[key.variant].d_sae for key in job) for job in sharing.jobs(spec, 1, "cpu")]
    assert sum(totals) == 1024 * 36
    # Graham's bound for the costliest first, over the best split, 12 * 1024 each.
    assert max(totals) <= 1024 * 12 * (4 / 3 - 1 / 9)


def test_the_snakefile_can_ask_without_torch():
    code = "import sys; import saeflow.sae.sharing; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(saeflow.__file__).parents[1]).returncode == 0


@pytest.fixture(scope="module")
def stores():
    generator = torch.Generator().manual_seed(0)
    atoms = torch.nn.functional.normalize(torch.randn(30, 13, generator=generator), dim=1)
    z = torch.rand(N_STORES, 900, 30, generator=generator)
    return [ActivationStore.from_array(x @ atoms) for x in z * (z > 0.85)]


@pytest.fixture(scope="module")
def whole(stores):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharing, "_STACK_SIZE", {"cpu": 3 * 50 * 30})
        return dict(fitting.fit(stores, saes(), seed=0))


@pytest.mark.parametrize("shards", [2, 3, 100])
def test_saes_have_the_same_bytes_for_any_number_of_jobs(shards, whole, stores, monkeypatch):
    # Stacks of three at most: families are cut, and no family has a job of its own.
    monkeypatch.setattr(sharing, "_STACK_SIZE", {"cpu": 3 * 50 * 30})
    spec = saes(shards)
    several = {}
    for keys in sharing.jobs(spec, N_STORES, "cpu"):
        several |= dict(fitting.fit(stores, spec, seed=0, keys=keys))
    assert set(several) == set(whole)
    for key, result in several.items():
        assert result.curves == whole[key].curves, key
        for name in result.sae.shapes:
            ours, theirs = (getattr(fitted.sae, name).detach().numpy() for fitted in (result, whole[key]))
            assert ours.tobytes() == theirs.tobytes(), (key, name)
