"""Whole-model distillation: all weights of the target trained on doodles. A reference, not an injection."""

import copy
import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import nn

from saeflow.config.injection import Injection
from saeflow.injection.knowledge import T2
from saeflow.injection.method import Method, register, require_equal
from saeflow.injection.protocol import Guard
from saeflow.models.adamw import AdamW
from saeflow.models.classifiers import StackedClassifier

_EPOCHS = 3
_BATCH_SIZE = 128
_LEARNING_RATE = 1e-3


@register
@dataclass(frozen=True, kw_only=True)
class WholeModelDistillation(Method):
    """argmin over all weights of A' of  E_doodles KL(q(x) | p_A'(x)) + E_own CE(y, p_A'(x)).

    q: the source's probability of the concept on the concept, the rest shared out as the untouched target answers
    (Hinton et al. 2015). It changes all of A, so it bounds what a head can reach. Run for equal architectures only, to
    spare time.
    """

    name = "whole_model_distillation"
    family = "reference"
    controls = ()
    equal_architectures = True

    @classmethod
    def variants(cls, settings: Injection) -> list[Self]:
        return [cls(knowledge=T2, site="weights")]

    def inject(self, source: StackedClassifier, target: StackedClassifier, guard: Guard) -> nn.Module:
        require_equal(source, target)
        doodles, own = guard.synthetic(), guard.own()
        p = guard.activations(source, doodles, "logits").softmax(-1)[..., guard.task.concept, None]
        wanted = guard.activations(target, doodles, "logits").softmax(-1) * (1 - p)
        wanted[..., guard.task.concept] += p[..., 0]
        student = copy.deepcopy(target).requires_grad_(True)
        parameters = list(student.parameters())
        optimizer = AdamW(parameters, 1e-4)
        generator = guard.generator("order")
        per_epoch = max(1, len(doodles) // _BATCH_SIZE)
        n_steps = _EPOCHS * per_epoch
        for step in range(n_steps):
            if step % per_epoch == 0:
                order = torch.randperm(len(doodles), generator=generator)
            rows = order[step % per_epoch * _BATCH_SIZE :][:_BATCH_SIZE].to(doodles.device)
            real = torch.randint(len(own.labels), (_BATCH_SIZE,), generator=generator).to(doodles.device)
            log_p = student(torch.cat([doodles[rows], own.images[real]])).log_softmax(-1)
            kl = -(wanted[:, rows] * log_p[:, : len(rows)]).sum(-1).mean(1).sum()
            answers = log_p[:, len(rows) :].flatten(0, 1)
            ce = nn.functional.nll_loss(answers, own.labels[real].repeat(len(log_p)), reduction="sum") / len(real)
            gradients = torch.autograd.grad(kl + ce, parameters)
            optimizer.step(gradients, _LEARNING_RATE / 2 * (1 + math.cos(math.pi * step / n_steps)))
        return student.requires_grad_(False)
