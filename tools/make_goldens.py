"""Make tests/golden/<variant>.json: logits of the tiny seeded models by `transformers`.

python tools/make_goldens.py [variant...]            (needs torch and transformers)
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Lfm2Config,
    Lfm2ForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

LOCAL_ROPE_BASE = 10000.0  # of layers with a window
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.golden import tiny as t  # noqa: E402  (found through the path set above)

CLASSES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "lfm2": (Lfm2Config, Lfm2ForCausalLM),
    "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM),
    "qwen3moe": (Qwen3MoeConfig, Qwen3MoeForCausalLM),
    "llama4": (Llama4TextConfig, Llama4ForCausalLM),
}
NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# gemma3 has norms after attention and feed-forward as well
GEMMA3_NAMES = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
LFM2_NAMES = {
    "attn_norm": "operator_norm",
    "attn_output": "self_attn.out_proj",
    "attn_q_norm": "self_attn.q_layernorm",
    "attn_k_norm": "self_attn.k_layernorm",
    "ffn_norm": "ffn_norm",
    "ffn_gate": "feed_forward.w1",
    "ffn_up": "feed_forward.w3",
    "ffn_down": "feed_forward.w2",
    "shortconv.in_proj": "conv.in_proj",
    "shortconv.conv": "conv.conv",
    "shortconv.out_proj": "conv.out_proj",
}
QWEN3MOE_NAMES = {"ffn_gate_inp": "mlp.gate"}
LLAMA4_NAMES = {
    "ffn_gate": "feed_forward.gate_proj",
    "ffn_up": "feed_forward.up_proj",
    "ffn_down": "feed_forward.down_proj",
    "ffn_gate_inp": "feed_forward.router",
    "ffn_gate_shexp": "feed_forward.shared_expert.gate_proj",
    "ffn_up_shexp": "feed_forward.shared_expert.up_proj",
    "ffn_down_shexp": "feed_forward.shared_expert.down_proj",
}
T5_NAMES = {
    "attn_norm": "layer.0.layer_norm",
    "attn_q": "layer.0.SelfAttention.q",
    "attn_k": "layer.0.SelfAttention.k",
    "attn_v": "layer.0.SelfAttention.v",
    "attn_o": "layer.0.SelfAttention.o",
    "attn_rel_b": "layer.0.SelfAttention.relative_attention_bias",
    "cross_attn_norm": "layer.1.layer_norm",
    "cross_attn_q": "layer.1.EncDecAttention.q",
    "cross_attn_k": "layer.1.EncDecAttention.k",
    "cross_attn_v": "layer.1.EncDecAttention.v",
    "cross_attn_o": "layer.1.EncDecAttention.o",
}
SIDES = {"enc": "encoder", "dec": "decoder"}
OF_ARCH = {"gemma3": GEMMA3_NAMES, "lfm2": LFM2_NAMES, "qwen3moe": QWEN3MOE_NAMES, "llama4": LLAMA4_NAMES}
OUTER = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "token_embd_norm": "model.embedding_norm",
    "output": "lm_head",
}


def rope_parameters(tiny: t.Tiny) -> dict[str, object]:
    """The variant in the words of `transformers`."""
    found: dict[str, object] = {"rope_type": tiny.rope.get("type", "default"), "rope_theta": tiny.rope_base}
    if "factor" in tiny.rope:
        found["factor"] = tiny.rope["factor"]
    if "original_context_length" in tiny.rope:
        found["original_max_position_embeddings"] = tiny.rope["original_context_length"]
    if tiny.llama3_factor > 0:
        found |= {
            "rope_type": "llama3",
            "factor": tiny.llama3_factor,
            "low_freq_factor": t.LLAMA3_LOW_FREQ_FACTOR,
            "high_freq_factor": t.LLAMA3_HIGH_FREQ_FACTOR,
            "original_max_position_embeddings": t.LLAMA3_ORIGINAL_CONTEXT,
        }
    return found


def gemma3_config(tiny: t.Tiny) -> dict[str, object]:
    """What only gemma3 has, in the words of `transformers`."""
    kinds = ["sliding_attention" if is_local else "full_attention" for is_local in tiny.is_local]
    local = {"rope_type": "default", "rope_theta": LOCAL_ROPE_BASE}
    return {
        "rope_parameters": {"full_attention": rope_parameters(tiny), "sliding_attention": local},
        "layer_types": kinds,
        "sliding_window": tiny.window,
        "query_pre_attn_scalar": tiny.head_dim,
        "final_logit_softcapping": tiny.logit_softcap or None,
    }


def lfm2_config(tiny: t.Tiny) -> dict[str, object]:
    """What only lfm2 has, in the words of `transformers`."""
    kinds = ["conv" if tiny.is_conv(i) else "full_attention" for i in range(tiny.n_layer)]
    return {
        "rope_parameters": rope_parameters(tiny),
        "layer_types": kinds,
        "conv_L_cache": tiny.n_tap,
        "block_auto_adjust_ff_dim": False,
        "norm_eps": t.EPS,
    }


def qwen3moe_config(tiny: t.Tiny) -> dict[str, object]:
    """What only qwen3moe has, in the words of `transformers`."""
    return {
        "rope_parameters": rope_parameters(tiny),
        "num_experts": tiny.n_expert,
        "num_experts_per_tok": tiny.n_expert_used,
        "moe_intermediate_size": tiny.n_ff_exp,
        "norm_topk_prob": True,
    }


def llama4_config(tiny: t.Tiny) -> dict[str, object]:
    """What only llama4 has, in the words of `transformers`."""
    return {
        "rope_parameters": rope_parameters(tiny),
        "num_local_experts": tiny.n_expert,
        "num_experts_per_tok": tiny.n_expert_used,
        "intermediate_size": tiny.n_ff_exp,
        "intermediate_size_mlp": tiny.n_ff,
        "interleave_moe_layer_step": tiny.expert_step,
        "attention_chunk_size": tiny.chunk,
        "floor_scale": tiny.temperature_length,
        "use_qk_norm": tiny.n_expert != 128,  # as files without a key for it are read
    }


def add_experts(found: dict[str, torch.Tensor], tiny: t.Tiny, layer: int) -> None:
    """A layer's experts as `transformers` keeps them: gate and up in one, and for llama4 turned."""
    made = t.weights(tiny)
    gate, up, down = (made[f"blk.{layer}.ffn_{part}_exps.weight"] for part in ("gate", "up", "down"))
    both = np.concatenate([gate, up], axis=1)
    part = "mlp"
    if tiny.arch == "llama4":
        part, both, down = "feed_forward", both.swapaxes(1, 2), down.swapaxes(1, 2)
    for name, value in (("gate_up_proj", both), ("down_proj", down)):
        found[f"model.layers.{layer}.{part}.experts.{name}"] = torch.from_numpy(value.copy())


def unpermute(weight: np.ndarray, n_head: int) -> np.ndarray:
    """From GGUF's order of a llama file (neighbours turn together) to that of `transformers` (halves do)."""
    n_out, n_in = weight.shape
    return weight.reshape(n_head, n_out // n_head // 2, 2, n_in).swapaxes(1, 2).reshape(n_out, n_in)


def state_dict(tiny: t.Tiny) -> dict[str, torch.Tensor]:
    """The tiny model's weights under the names of `transformers`."""
    found: dict[str, torch.Tensor] = {}
    names = NAMES | OF_ARCH.get(tiny.arch, {})
    for name, value in t.weights(tiny).items():
        if tiny.arch == "gemma3" and name.endswith("norm.weight"):
            value = value - np.float32(1)  # which the model adds
        stem, kind = name.rsplit(".", 1)
        if stem.startswith("blk."):
            _, layer, part = stem.split(".", 2)
            if part.endswith("_exps"):
                continue
            if tiny.arch == "llama" and part in ("attn_q", "attn_k"):
                value = unpermute(value, tiny.n_head if part == "attn_q" else tiny.n_head_kv)
            if part == "shortconv.conv":
                value = value[:, None, :]  # one input channel for each output channel
            found[f"model.layers.{layer}.{names[part]}.{kind}"] = torch.from_numpy(value.copy())
        else:
            found[f"{OUTER[stem]}.{kind}"] = torch.from_numpy(value)
    for layer in range(tiny.n_layer):
        if tiny.has_experts(layer):
            add_experts(found, tiny, layer)
    if tiny.is_tied:
        found["lm_head.weight"] = found["model.embed_tokens.weight"]
    return found


def t5_state_dict(tiny: t.Tiny) -> dict[str, torch.Tensor]:
    """The same of an encoder and a decoder."""
    found: dict[str, torch.Tensor] = {}
    for name, value in t.weights(tiny).items():
        match name.split(".")[:-1]:
            case [side, "blk", layer, part] if part.startswith("ffn"):
                place = "layer.1" if side == "enc" else "layer.2"
                inner = {"gate": "wi_0", "up": "wi_1" if tiny.is_gated else "wi", "down": "wo"}
                kind = part.removeprefix("ffn_")
                stem = f"{place}.layer_norm" if kind == "norm" else f"{place}.DenseReluDense.{inner[kind]}"
                full = f"{SIDES[side]}.block.{layer}.{stem}"
            case [side, "blk", layer, part]:
                full = f"{SIDES[side]}.block.{layer}.{T5_NAMES[part]}"
            case [side, "output_norm"]:
                full = f"{SIDES[side]}.final_layer_norm"
            case [outer]:
                full = {"token_embd": "shared", "output": "lm_head"}[outer]
        found[f"{full}.weight"] = torch.from_numpy(value.copy())
    for side in SIDES.values():
        found[f"{side}.embed_tokens.weight"] = found["shared.weight"]
    if tiny.is_tied:
        found["lm_head.weight"] = found["shared.weight"]
    return found


def t5_logits(tiny: t.Tiny) -> np.ndarray:
    """[n_answer, n_vocab] f32 of the fixed answer to the fixed prompt."""
    config = T5Config(
        vocab_size=tiny.n_vocab,
        d_model=tiny.n_embd,
        d_kv=tiny.head_dim,
        d_ff=tiny.n_ff,
        num_layers=tiny.n_encoder,
        num_decoder_layers=tiny.n_layer,
        num_heads=tiny.n_head,
        relative_attention_num_buckets=tiny.n_bucket,
        layer_norm_epsilon=t.EPS,
        feed_forward_proj="gated-gelu" if tiny.is_gated else "relu",
        tie_word_embeddings=tiny.is_tied,
    )
    model = T5ForConditionalGeneration(config).eval().to(torch.float32)
    weights = t5_state_dict(tiny)
    model.load_state_dict(weights, strict=True)
    # the class ties what goes in and out, whatever the configuration says
    model.lm_head.weight = torch.nn.Parameter(weights["lm_head.weight"])
    for part in (model.encoder, model.decoder):
        part.embed_tokens.weight = torch.nn.Parameter(weights["shared.weight"])
    asked, answered = torch.tensor([t.prompt(tiny, t.N_ASKED)]), torch.tensor([t.answer(tiny)])
    with torch.no_grad():
        return model(input_ids=asked, decoder_input_ids=answered).logits[0].numpy()


def logits(tiny: t.Tiny) -> np.ndarray:
    """[n_tokens, n_vocab] f32 of the fixed prompt."""
    if tiny.n_encoder:
        return t5_logits(tiny)
    make_config, make_model = CLASSES[tiny.arch]
    plain = {"rope_parameters": rope_parameters(tiny)}
    special = {
        "gemma3": gemma3_config,
        "lfm2": lfm2_config,
        "qwen3moe": qwen3moe_config,
        "llama4": llama4_config,
    }
    common = {
        "vocab_size": tiny.n_vocab,
        "hidden_size": tiny.n_embd,
        "intermediate_size": tiny.n_ff,
        "num_hidden_layers": tiny.n_layer,
        "num_attention_heads": tiny.n_head,
        "num_key_value_heads": tiny.n_head_kv,
        "head_dim": tiny.head_dim,
        "max_position_embeddings": t.N_CTX,
        "rms_norm_eps": t.EPS,
        "tie_word_embeddings": tiny.is_tied,
        "attn_implementation": "eager",
    }
    config = make_config(**(common | special.get(tiny.arch, lambda _: plain)(tiny)))
    model = make_model(config).eval().to(torch.float32)
    model.load_state_dict(state_dict(tiny), strict=True)
    with torch.no_grad():
        return model(torch.tensor([t.prompt(tiny)])).logits[0].numpy()


def main() -> None:
    """Write one file a variant: of those named, or of all."""
    for name in sys.argv[1:] or t.VARIANTS:
        tiny = t.VARIANTS[name]
        versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
        made = {
            "how": f"tools/make_goldens.py; {versions}",
            "prompt": t.prompt(tiny, t.N_ASKED) if tiny.n_encoder else t.prompt(tiny),
            **({"answer": t.answer(tiny)} if tiny.n_encoder else {}),
            "logits": [[float(f"{x:.7g}") for x in row] for row in logits(tiny)],
        }
        path = ROOT / "tests" / "golden" / f"{name}.json"
        path.write_text(json.dumps(made) + "\n")
        print(path.name, np.array(made["logits"]).std())


if __name__ == "__main__":
    main()
