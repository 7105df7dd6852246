"""A small language model of words, trained from nothing: the embedded one of a study without downloads.

The vocabulary holds whole words, so that every noun and category label of the embedded corpus is one token.
"""

import logging
import math
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from saeflow import tracking
from saeflow.config.language import SPECIAL_TOKENS, EmbeddedModel
from saeflow.datasets.contexts import NO_TEXT, Contexts
from saeflow.models.language import Tokens, loss_sum
from saeflow.reproduce import child_seed

log = logging.getLogger(__name__)

_WORD = re.compile(r"\w+|[^\w\s]+")  # what the tokenizer's `Whitespace` splits at
_CURVE_POINTS = 60


def word_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokens:
    """A tokenizer of lower-case words and marks: the most frequent ones of the texts.

    Arguments:
        texts: to count words in.
        vocabulary: tokens in all, at most.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    unknown, start = SPECIAL_TOKENS
    counts = Counter(word for text in texts for word in _WORD.findall(text.lower()))
    words = sorted(counts, key=lambda word: (-counts[word], word))[: vocabulary - len(SPECIAL_TOKENS)]
    inner = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate((*SPECIAL_TOKENS, *words))}, unk_token=unknown)
    )
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token=unknown, bos_token=start)
    return Tokens(tokenizer, tokenizer.bos_token_id)


def untrained(spec: EmbeddedModel, n_words: int, context_size: int, seed: int) -> nn.Module:
    """A Llama model before its first step.

    Arguments:
        n_words: size of the vocabulary.
        context_size: most tokens that it reads.
        seed: of the first weights.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=n_words,
        hidden_size=spec.width,
        intermediate_size=spec.mlp_width,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.heads,
        max_position_embeddings=context_size,
        tie_word_embeddings=False,
        bos_token_id=SPECIAL_TOKENS.index("<s>"),
        eos_token_id=None,
        pad_token_id=None,
        use_cache=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(child_seed(seed, "language model"))
        model = LlamaForCausalLM(config)
        nn.init.normal_(model.lm_head.weight, std=spec.lm_head_std)
    return model


def train(
    model: nn.Module, contexts: Contexts, spec: EmbeddedModel, *, seed: int, device: str = "cpu"
) -> list[dict[str, Any]]:
    """Train on contexts, each shown equally often: AdamW, cross-entropy of the next text token.

    Arguments:
        model: changed in place.
        contexts: of the training split.
        seed: of the order.
    Returns:
        the curve: `step` and mean `loss` in nats since the line before.
    """
    tokens = torch.from_numpy(contexts.tokens)
    # Logits of a context's last token are computed but not scored: to cut them off would copy all others.
    targets = torch.full_like(tokens, -100)
    targets[:, :-1] = tokens[:, 1:]
    targets[:, :-1][torch.from_numpy(contexts.position[:, 1:] == NO_TEXT)] = -100
    model.to(device).train()
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": spec.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=spec.learning_rate, betas=(0.9, 0.95), fused=True)
    order = _order(len(tokens), spec.steps * spec.batch_size, seed)
    every, curve, losses = max(1, spec.steps // _CURVE_POINTS), [], []
    for step in range(spec.steps):
        for group in optimizer.param_groups:
            group["lr"] = spec.learning_rate * schedule(spec, step)
        rows = order[step * spec.batch_size : (step + 1) * spec.batch_size]
        logits = model(tokens[rows].to(device)).logits.flatten(0, 1)
        loss = cross_entropy(logits.float(), targets[rows].flatten().to(device), ignore_index=-100)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.detach())
        if (step + 1) % every == 0 or step + 1 == spec.steps:
            curve.append({"step": step + 1, "loss": float(torch.stack(losses).mean())})
            losses.clear()
            log.info("step %d: loss %.4f", step + 1, curve[-1]["loss"])
            tracking.scalars("language model", step + 1, {"loss": curve[-1]["loss"]})
    model.eval()
    return curve


def schedule(spec: EmbeddedModel, step: int) -> float:
    """Share of the peak step size at a step: a linear rise, then a cosine to a tenth."""
    if step < spec.warmup_steps:
        return (step + 1) / spec.warmup_steps
    done = (step - spec.warmup_steps) / max(1, spec.steps - spec.warmup_steps)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * done))


def _order(n: int, wanted: int, seed: int) -> Int[Tensor, " wanted"]:
    """Rows of all steps: one permutation after another."""
    generator = torch.Generator().manual_seed(child_seed(seed, "language model", "order"))
    return torch.cat([torch.randperm(n, generator=generator) for _ in range(-(-wanted // n))])[:wanted]


def mean_loss(model: nn.Module, contexts: Contexts, batch_size: int, device: str) -> float:
    """Cross-entropy on contexts, nats per text token."""
    total, n = 0.0, 0
    tokens, is_text = torch.from_numpy(contexts.tokens), torch.from_numpy(contexts.is_text)
    for start in range(0, len(tokens), batch_size):
        part = slice(start, start + batch_size)
        loss, count = loss_sum(model, tokens[part].to(device), is_text[part])
        total, n = total + float(loss), n + count
    return total / n


def save(model: nn.Module, tokens: Tokens, folder: Path) -> None:
    """Write model and tokenizer as transformers reads them."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    model.cpu().save_pretrained(folder)
    tokens.tokenizer.save_pretrained(folder)
