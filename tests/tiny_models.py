"""Small random language models of the architectures that studies load, with a tokenizer of words."""

from pathlib import Path

import torch
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from saeflow.models.language_training import word_tokenizer

WORDS = "the a cat dog sat ran on mat . , who saw it"
SETTINGS = {"dtype": "float32", "attention": "eager", "device_map": None, "trust_remote_code": False}
_SIZES = {
    "vocab_size": 20,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 24,
}
_IDS = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": None}


def _gpt2():
    sizes = {"vocab_size": 20, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 24}
    return GPT2LMHeadModel(GPT2Config(**sizes, **_IDS))


# Architecture, its blocks, a module inside one and that module's width.
ARCHITECTURES = {
    "gpt2": (_gpt2, "transformer.h", "mlp.c_fc", 64),
    "gpt_neox": (lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**_SIZES, **_IDS)), "gpt_neox.layers", "mlp.act", 32),
    "phi": (lambda: PhiForCausalLM(PhiConfig(**_SIZES, **_IDS)), "model.layers", "mlp.fc2", 16),
    "gemma": (
        lambda: GemmaForCausalLM(GemmaConfig(**_SIZES, **_IDS, num_key_value_heads=1, head_dim=8)),
        "model.layers",
        "mlp.gate_proj",
        32,
    ),
    "llama": (lambda: LlamaForCausalLM(LlamaConfig(**_SIZES, **_IDS)), "model.layers", "self_attn.o_proj", 16),
}


def save(architecture: str, folder: Path) -> Path:
    """A model of an architecture, with seeded random weights."""
    torch.manual_seed(0)
    model = ARCHITECTURES[architecture][0]()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    word_tokenizer([WORDS], 100).tokenizer.save_pretrained(folder)
    return folder
