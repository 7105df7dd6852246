"""An SAE that died is told so, with its penalty and what to try, and does not end up in a table."""

import logging

from saeflow import config
from saeflow.sae.trainer import TrainedSAE

log = logging.getLogger(__name__)

_DIED = 0.95
_MANY = 0.1


class DeadSAEError(ValueError):
    """An SAE most of whose latents no longer fire; names it, its penalty and what to try."""


def check(result: TrainedSAE, training: config.Training) -> TrainedSAE:
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
        if isinstance(spec, config.Penalised)
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
