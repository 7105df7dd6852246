"""Curves for those who watch: what trackers get, and that nobody else notices."""

import sys

import pytest
import torch
from test_rule import job
from test_sae_trainer import VARIANTS, assert_same_bytes, settings, sparse_mixture

from saeflow import rule, tracking
from saeflow.activations import ActivationStore
from saeflow.config.saes import ReLU, SAEs
from saeflow.sae import fitting
from saeflow.sae.stack import Member
from saeflow.sae.trainer import train


class Recorder:
    """A tracker that keeps what it gets."""

    opened: list["Recorder"]

    package = "json"

    def __init__(self, folder):
        self.folder, self.points, self.closed = folder, [], False
        self.opened.append(self)

    def scalars(self, training, step, values):
        assert not self.closed
        self.points.append((training, step, dict(values)))

    def close(self):
        self.closed = True


@pytest.fixture
def recorders(monkeypatch):
    """All that were opened."""
    monkeypatch.setattr(Recorder, "opened", [], raising=False)
    monkeypatch.setitem(tracking._KINDS, "recorder", Recorder)
    return Recorder.opened


def test_a_tracker_gets_every_point_of_every_curve_and_no_byte_changes(recorders, tmp_path):
    store = ActivationStore.from_array(sparse_mixture(600))
    members = [Member(name, spec, 0) for name, spec in VARIANTS.items()]
    alone = train(store, members, settings())
    with tracking.followed(tmp_path, {tracking.VARIABLE: "recorder"}):
        watched = train(store, members, settings())
    assert_same_bytes(alone, watched)
    (tracker,) = recorders
    assert tracker.closed
    for result in watched:
        own = [(step, values) for name, step, values in tracker.points if name == result.member.name]
        assert [step for step, _ in own] == result.curves["step"]
        for column in ("loss", "explained_variance", "l0"):
            assert [values[column] for _, values in own] == result.curves[column]


def test_each_penalty_of_a_search_has_a_curve_of_its_own(recorders, tmp_path):
    variant = ReLU(architecture="relu", d_sae=48, target_l0=6)
    saes = SAEs(variants={"relu": variant}, training=settings(steps=250, learning_rate=5e-3))
    with tracking.followed(tmp_path, {tracking.VARIABLE: "recorder"}):
        list(fitting.fit([ActivationStore.from_array(sparse_mixture(600))], saes, seed=0))
    points = recorders[0].points
    names = {name for name, *_ in points}
    assert len(names) > 3
    assert all(name.startswith("relu-s0, store 0, penalty ") for name in names)
    for name in names:
        steps = [step for own, step, _ in points if own == name]
        assert steps == sorted(set(steps))


def test_a_job_opens_the_trackers_that_the_environment_names(recorders, tmp_path, monkeypatch):
    monkeypatch.setenv(tracking.VARIABLE, "recorder")

    def main():
        tracking.scalars("a", 3, {"loss": 0.5})
        raise KeyError("stop")

    with pytest.raises(SystemExit, match="stop"):
        rule.run(main, job(tmp_path))
    assert recorders[0].folder == tmp_path / "job.curves"
    assert recorders[0].points == [("a", 3, {"loss": 0.5})]
    assert recorders[0].closed
    assert not tracking._open


def test_nobody_watches_by_default(tmp_path):
    with tracking.followed(tmp_path, {}):
        assert not tracking._open
        tracking.scalars("a", 0, {"loss": torch.nan})
    assert not list(tmp_path.iterdir())


def test_a_misspelt_tracker_is_refused(tmp_path):
    with (
        pytest.raises(ValueError, match="SAEFLOW_TRACKERS: 'tensorbord' is none of tensorboard, wandb"),
        tracking.followed(tmp_path, {tracking.VARIABLE: "tensorbord"}),
    ):
        pass


@pytest.mark.parametrize(("name", "package"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_a_tracker_that_is_not_installed_says_what_to_install(name, package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with (
        pytest.raises(ValueError, match=f"'{name}' needs .* -r envs/tracking.lock"),
        tracking.followed(tmp_path, {tracking.VARIABLE: name}),
    ):
        pass
