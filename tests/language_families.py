"""One small random model of each family of causal language models, built by transformers from a configuration."""

import torch
from torch import nn

_SIZE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
_LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
_ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": 1, "topk_group": 1}
_MAMBA2 = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}
_SLIDING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}
_OPT = {"ffn_dim": 48, "word_embed_proj_dim": 32}
_DECODER = {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48}
_VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
_IMAGES = {"mm_tokens_per_image": 4, "image_token_index": 95, "boi_token_index": 94, "eoi_token_index": 93}
_H = "transformer.h.1"
_LAYERS = "model.layers.1"

# Name: type, what its configuration has of its own, the last block.
FAMILIES = {
    "apertus": ("apertus", _GROUPED, _LAYERS),
    "arcee": ("arcee", _GROUPED, _LAYERS),
    "bamba": ("bamba", {**_MAMBA2, "attn_layer_indices": [1], **_GROUPED}, _LAYERS),
    "biogpt": ("biogpt", {}, "biogpt.layers.1"),
    "bitnet": ("bitnet", {"num_key_value_heads": 2}, _LAYERS),
    "bloom": ("bloom", {"n_layer": 2, "n_head": 4}, _H),
    "codegen": ("codegen", {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 64}, _H),
    "cohere": ("cohere", {"num_key_value_heads": 2}, _LAYERS),
    "cohere2": ("cohere2", {"num_key_value_heads": 2, **_SLIDING}, _LAYERS),
    "dbrx": (
        "dbrx",
        {
            "d_model": 32,
            "n_layers": 2,
            "n_heads": 4,
            "max_seq_len": 64,
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
            "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
        },
        "transformer.blocks.1",
    ),
    "deepseek_v2": ("deepseek_v2", {**_LATENT, **_ROUTED, "topk_method": "greedy"}, _LAYERS),
    "deepseek_v3": ("deepseek_v3", {**_LATENT, **_ROUTED, "num_key_value_heads": 4, "n_shared_experts": 1}, _LAYERS),
    "diffllama": ("diffllama", {"num_key_value_heads": 2}, _LAYERS),
    "ernie4_5": ("ernie4_5", _GROUPED, _LAYERS),
    "exaone4": ("exaone4", {**_GROUPED, **_SLIDING}, _LAYERS),
    "falcon": ("falcon", {}, _H),
    "falcon_h1": ("falcon_h1", {**_MAMBA2, "mamba_d_ssm": 64, **_GROUPED}, _LAYERS),
    "falcon_mamba": ("falcon_mamba", {"state_size": 4, "time_step_rank": 4}, "backbone.layers.1"),
    "gemma": ("gemma", _GROUPED, _LAYERS),
    "gemma2": ("gemma2", {**_GROUPED, **_SLIDING}, _LAYERS),
    "gemma3": ("gemma3_text", {**_GROUPED, **_SLIDING}, _LAYERS),
    "gemma3 with vision": (
        "gemma3",
        {"text_config": {**_SIZE, **_GROUPED, **_SLIDING}, "vision_config": _VISION, **_IMAGES},
        "model.language_model.layers.1",
    ),
    "gemma4": (
        "gemma4_text",
        {
            **_GROUPED,
            **_SLIDING,
            "global_head_dim": 8,
            "vocab_size_per_layer_input": 96,
            "hidden_size_per_layer_input": 0,
            "num_kv_shared_layers": 0,
        },
        _LAYERS,
    ),
    "glm": ("glm", _GROUPED, _LAYERS),
    "glm4": ("glm4", _GROUPED, _LAYERS),
    "gpt2": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}, _H),
    "gpt_bigcode": ("gpt_bigcode", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}, _H),
    "gpt_neo": ("gpt_neo", {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}, _H),
    "gpt_neox": ("gpt_neox", {}, "gpt_neox.layers.1"),
    "gpt_oss": ("gpt_oss", {**_GROUPED, **_LOCAL_EXPERTS, **_SLIDING}, _LAYERS),
    "gptj": ("gptj", {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 64}, _H),
    "granite": ("granite", {"num_key_value_heads": 2, "logits_scaling": 4.0, "residual_multiplier": 0.3}, _LAYERS),
    "granitemoe": ("granitemoe", {"num_key_value_heads": 2, **_LOCAL_EXPERTS}, _LAYERS),
    "granitemoehybrid": (
        "granitemoehybrid",
        {
            **_MAMBA2,
            **_LOCAL_EXPERTS,
            "num_key_value_heads": 2,
            "layer_types": ["mamba", "attention"],
            "shared_intermediate_size": 16,
        },
        _LAYERS,
    ),
    "helium": ("helium", _GROUPED, _LAYERS),
    "hunyuan": ("hunyuan_v1_dense", _GROUPED, _LAYERS),
    "jamba": (
        "jamba",
        {
            "num_key_value_heads": 2,
            "attn_layer_offset": 1,
            "attn_layer_period": 2,
            "expert_layer_offset": 1,
            "expert_layer_period": 2,
            "mamba_d_state": 4,
            "mamba_dt_rank": 4,
            "num_experts": 4,
            "use_mamba_kernels": False,
        },
        _LAYERS,
    ),
    "jetmoe": ("jetmoe", {"kv_channels": 8, "num_key_value_heads": 2, **_LOCAL_EXPERTS}, _LAYERS),
    "lfm2": ("lfm2", {"num_key_value_heads": 2, "layer_types": ["conv", "full_attention"]}, _LAYERS),
    "llama": ("llama", {"num_key_value_heads": 2}, _LAYERS),
    "mamba": ("mamba", {"state_size": 4, "time_step_rank": 4}, "backbone.layers.1"),
    "mamba2": (
        "mamba2",
        {"state_size": 8, "num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 8},
        "backbone.layers.1",
    ),
    "minicpm3": ("minicpm3", {**_LATENT, "num_key_value_heads": 4, "dim_model_base": 8}, _LAYERS),
    "minimax": (
        "minimax",
        {**_GROUPED, **_LOCAL_EXPERTS, "layer_types": ["linear_attention", "full_attention"], "block_size": 8},
        _LAYERS,
    ),
    "mistral": ("mistral", _GROUPED, _LAYERS),
    "mixtral": ("mixtral", {**_GROUPED, **_LOCAL_EXPERTS}, _LAYERS),
    "mpt": ("mpt", {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}, "transformer.blocks.1"),
    "nanochat": ("nanochat", {"num_key_value_heads": 2}, _LAYERS),
    "nemotron": ("nemotron", _GROUPED, _LAYERS),
    "olmo": ("olmo", {"num_key_value_heads": 2}, _LAYERS),
    "olmo2": ("olmo2", {"num_key_value_heads": 2}, _LAYERS),
    "olmo3": ("olmo3", {"num_key_value_heads": 2, **_SLIDING}, _LAYERS),
    "olmoe": ("olmoe", {"num_key_value_heads": 2, "num_experts": 4, "num_experts_per_tok": 2}, _LAYERS),
    "opt": ("opt", _OPT, "model.decoder.layers.1"),
    "opt, norms after the blocks": ("opt", {**_OPT, "do_layer_norm_before": False}, "model.decoder.layers.1"),
    "opt, projected": (
        "opt",
        {**_OPT, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
        "model.decoder.layers.1",
    ),
    "opt, normed and projected": ("opt", {**_OPT, "word_embed_proj_dim": 16}, "model.decoder.layers.1"),
    "openai-gpt": ("openai-gpt", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}, _H),
    "pegasus": ("pegasus", _DECODER, "model.decoder.layers.1"),
    "persimmon": ("persimmon", {}, _LAYERS),
    "phi": ("phi", {}, _LAYERS),
    "phi3": ("phi3", {"num_key_value_heads": 2}, _LAYERS),
    "phimoe": ("phimoe", {"num_key_value_heads": 2, **_LOCAL_EXPERTS}, _LAYERS),
    "qwen2": ("qwen2", {"num_key_value_heads": 2}, _LAYERS),
    "qwen2_moe": ("qwen2_moe", {"num_key_value_heads": 2, **_EXPERTS, "shared_expert_intermediate_size": 16}, _LAYERS),
    "qwen3": ("qwen3", _GROUPED, _LAYERS),
    "qwen3_5": ("qwen3_5_text", {**_GROUPED, **_LINEAR}, _LAYERS),
    "qwen3_next": (
        "qwen3_next",
        {**_GROUPED, **_LINEAR, **_EXPERTS, "shared_expert_intermediate_size": 16},
        _LAYERS,
    ),
    "recurrent_gemma": (
        "recurrent_gemma",
        {"num_hidden_layers": 3, "num_key_value_heads": 1, "head_dim": 8, "lru_width": 32},
        "model.layers.2",
    ),
    "rwkv": ("rwkv", {"attention_hidden_size": 32, "rescale_every": 1}, "rwkv.blocks.1"),
    "smollm3": ("smollm3", {"num_key_value_heads": 2}, _LAYERS),
    "stablelm": ("stablelm", {"num_key_value_heads": 2}, _LAYERS),
    "starcoder2": ("starcoder2", {"num_key_value_heads": 2}, _LAYERS),
    "trocr": ("trocr", _DECODER, "model.decoder.layers.1"),
    "vaultgemma": ("vaultgemma", {**_GROUPED, **_SLIDING}, _LAYERS),
    "xglm": ("xglm", {"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 48}, "model.layers.1"),
    "zamba2": (
        "zamba2",
        {
            "layers_block_type": ["mamba", "hybrid"],
            "num_mem_blocks": 1,
            "mamba_d_state": 8,
            "mamba_headdim": 16,
            "n_mamba_heads": 4,
            "chunk_size": 8,
            "num_key_value_heads": 4,
            "adapter_rank": 4,
        },
        _LAYERS,
    ),
}

# The same of families whose values reach the logits by more than sums and a norm, and what lies between.
OTHERS = {
    "bert": ("bert", {"is_decoder": True}, "bert.encoder.layer.1", "transform_act_fn lies between"),
    "roberta": (
        "roberta",
        {"is_decoder": True},
        "roberta.encoder.layer.1",
        "something that no module gives",
    ),
    "deepseek_v4": ("deepseek_v4", {}, _LAYERS, "hc_head"),
    "gemma3n": (
        "gemma3n_text",
        {
            **_GROUPED,
            **_SLIDING,
            "intermediate_size": [48, 48],
            "activation_sparsity_pattern": [0.0, 0.0],
            "laurel_rank": 4,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 96,
            "num_kv_shared_layers": 0,
        },
        _LAYERS,
        "something that no module gives",
    ),
}


def build(kind: str, **own) -> nn.Module:
    """A model with seeded random weights: gains and biases spread around what they start from.

    Raises:
        KeyError: a type that this version of transformers does not have.
    """
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind](**({} if "text_config" in own else _SIZE) | own)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter += 0.5 * torch.randn_like(parameter)
    return model
