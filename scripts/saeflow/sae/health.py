"""An SAE that diverged or died is told so, with its settings and what to try, and does not end up in a table."""

import logging
import math
from collections.abc import Sequence
from operator import itemgetter

from saeflow.config.saes import Penalised, Training
from saeflow.sae.trainer import TrainedSAE

log = logging.getLogger(__name__)

_DIED = 0.95
_MANY = 0.1


class DeadSAEError(ValueError):
    """An SAE most of whose latents no longer fire; names it, its penalty and what to try."""


class DivergedError(ValueError):
    """A training whose loss or weights are not finite; names the SAE, its settings and what to try."""


def is_finite(result: TrainedSAE) -> bool:
    """Whether an SAE's weights and last loss are numbers."""
    return math.isfinite(result.curves["loss"][-1]) and all(bool(p.isfinite().all()) for p in result.sae.parameters())


def check_finite(result: TrainedSAE, training: Training, *, searched: bool = False) -> TrainedSAE:
    """The same result, unless its training diverged.

    Arguments:
        searched: whether the penalty was, which the study then does not give.
    Raises:
        DivergedError: loss or weights are not finite.
    """
    if is_finite(result):
        return result
    curves = result.curves
    lost = [step for step, loss in zip(curves["step"], curves["loss"], strict=True) if not math.isfinite(loss)]
    since = f"its loss is not finite from step {lost[0]} on" if lost else "its weights are not finite"
    raise DivergedError(f"{result.member.name}: training diverged, {since}; {_gentler(result, training, searched)}")


def missed(error: ValueError, results: Sequence[TrainedSAE], training: Training) -> ValueError:
    """Why a target L0 was missed: by what the error says, or because no training got better than the mean activation.

    Arguments:
        error: of the calibration.
        results: what was trained for the target.
    """
    explained = [result.curves["explained_variance"][-1] for result in results]
    value, best = max(
        ((-math.inf if math.isnan(value) else value, result) for value, result in zip(explained, results, strict=True)),
        key=itemgetter(0),
    )
    if value > 0:
        return error
    what = f"its explained variance is {value:.3g}, less than that of the mean activation"
    return DivergedError(f"{best.member.name}: training diverged, {what}; {_gentler(best, training, searched=True)}")


def _gentler(result: TrainedSAE, training: Training, searched: bool) -> str:
    """Keys to change for a training that diverged, with their values."""
    spec = result.member.spec
    smaller = {"training.learning_rate": training.learning_rate}
    if isinstance(spec, Penalised) and not searched:
        smaller["penalty"] = spec.penalty
    if spec.dead_latents == "auxk" and spec.auxk_coefficient > type(spec).model_fields["auxk_coefficient"].default:
        smaller["auxk_coefficient"] = spec.auxk_coefficient
    if spec.splice_kl:
        smaller["splice_kl"] = spec.splice_kl
    settings = ", ".join(f"{name} ({value:.3g})" for name, value in smaller.items())
    more = "" if training.normalize else ", or training.normalize: true"
    return f"try a smaller {settings}, or more training.warmup_steps ({training.warmup_steps}){more}"


def check(result: TrainedSAE, training: Training) -> TrainedSAE:
    """The same result, unless nearly all of its latents are dead at the end of training; a warning for many.

    Raises:
        DeadSAEError: 95 % or more are dead, or nothing fires at all.
    """
    dead, l0 = (result.curves[name][-1] for name in ("dead_share", "l0"))
    spec, name = result.member.spec, result.member.name
    if dead < _MANY and l0 > 0:
        return result
    what = f"{name}: {dead:.0%} of {spec.d_sae} latents have not fired for {training.dead_after:,} vectors, L0 {l0:.3g}"
    lower = (
        f"penalty {spec.penalty:.3g}: try a tenth of it, or a larger target_l0"
        if isinstance(spec, Penalised)
        else f"k {spec.k}: try a larger k, or a smaller d_sae"
    )
    more = f"a smaller learning_rate than {training.learning_rate:g}"
    if spec.dead_latents == "none":
        more += ", dead_latents: auxk"
    elif training.init == "random":
        more += ", init: data"
    if dead >= _DIED or l0 == 0:
        raise DeadSAEError(f"{what}; {lower}; {more}")
    log.warning("%s; to have fewer: %s; %s", what, lower, more)
    return result
