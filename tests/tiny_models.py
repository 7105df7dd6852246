"""Small random language models of the architectures that studies load, with a tokenizer of words."""

from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
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


_SHARED_KEYS = {"num_key_value_heads": 1, "head_dim": 8}
_EXPERTS = {**_SHARED_KEYS, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
# Model type, its sizes beside `_SIZES`, a block, and a module that gets all tokens as one list of rows, if it has one.
FAMILIES = {
    "bloom": ({"n_layer": 2, "n_head": 2}, "transformer.h.1", None),
    "deepseek_v3": (
        {
            **_EXPERTS,
            "num_key_value_heads": 2,
            "head_dim": 4,
            "kv_lora_rank": 8,
            "q_lora_rank": 8,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 4,
            "v_head_dim": 8,
            "n_routed_experts": 4,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
        },
        "model.layers.1",
        "model.layers.1.mlp.experts",
    ),
    "falcon": ({}, "transformer.h.1", None),
    "gemma2": ({**_SHARED_KEYS, "sliding_window": 4}, "model.layers.1", None),
    "gpt_neo": (
        {"num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]], "window_size": 4},
        "transformer.h.1",
        None,
    ),
    "gpt_oss": (
        {**_EXPERTS, "num_local_experts": 4, "sliding_window": 4},
        "model.layers.1",
        "model.layers.1.mlp.router",
    ),
    "mamba": ({"state_size": 4}, "backbone.layers.1", None),
    "mixtral": ({**_EXPERTS, "num_local_experts": 4}, "model.layers.1", "model.layers.1.mlp.gate"),
    "mpt": ({"d_model": 16, "n_layers": 2, "n_heads": 2, "max_seq_len": 24}, "transformer.blocks.1", None),
    "opt": ({"ffn_dim": 32, "word_embed_proj_dim": 16}, "model.decoder.layers.1", "model.decoder.layers.1.fc1"),
    "qwen3_moe": ({**_EXPERTS, "num_experts": 4}, "model.layers.1", "model.layers.1.mlp.experts"),
    "qwen3_next": (
        {
            **_EXPERTS,
            "num_experts": 4,
            "shared_expert_intermediate_size": 8,
            "linear_num_key_heads": 1,
            "linear_num_value_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "layer_types": ["linear_attention", "full_attention"],
        },
        "model.layers.1",
        "model.layers.1.mlp.gate",
    ),
    "rwkv": ({"attention_hidden_size": 16, "context_length": 24}, "rwkv.blocks.1", None),
}
"""Families that differ in attention, state, routing, and in how they pass activations on."""


def build(kind: str, folder: Path, **sizes: object) -> Path:
    """A model of any type that transformers has, with its own seeded first weights.

    Arguments:
        sizes: beside `_SIZES`; `...` for what the type does not have.
    """
    torch.manual_seed(0)
    sizes = {key: size for key, size in {**_SIZES, **_IDS, **sizes}.items() if size is not ...}
    config = AutoConfig.for_model(kind, **sizes)
    AutoModelForCausalLM.from_config(config).float().save_pretrained(folder)
    word_tokenizer([WORDS], 100).tokenizer.save_pretrained(folder)
    return folder
