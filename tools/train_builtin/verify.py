"""Check the built-in model's file against others' reading of it: `python -m tools.train_builtin.verify`.

1. `transformers` Qwen3ForCausalLM with the file's weights gives the logits that model.py gives.
2. The file's chat template, rendered by Jinja and tokenised with special tokens parsed, gives the tokens that
   training used.
3. Every byte can be encoded and comes back.
Needs `transformers` and `jinja2` beside what training needs.
"""

import argparse
import sys
from pathlib import Path

import gguf
import jinja2
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from tools.train_builtin.data import ChatEncoder
from tools.train_builtin.evaluate import read_encoder
from tools.train_builtin.export import MODEL_FILE, read_model
from tools.train_builtin.model import Model

TO_TRANSFORMERS = (
    ("token_embd", "model.embed_tokens"),
    ("output_norm", "model.norm"),
    ("blk.", "model.layers."),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("attn_norm", "input_layernorm"),
    ("attn_q.", "self_attn.q_proj."),
    ("attn_k.", "self_attn.k_proj."),
    ("attn_v.", "self_attn.v_proj."),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
)
MAX_RELATIVE_ERROR = 1e-4


def transformers_model(model: Model) -> Qwen3ForCausalLM:
    """The same weights in the `transformers` implementation."""
    shape = model.shape
    config = Qwen3Config(
        vocab_size=shape.n_vocab,
        hidden_size=shape.n_embd,
        intermediate_size=shape.n_ff,
        num_hidden_layers=shape.n_layer,
        num_attention_heads=shape.n_head,
        num_key_value_heads=shape.n_head_kv,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.n_ctx_train,
        rms_norm_eps=shape.rms_eps,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_base},
        tie_word_embeddings=True,
    )
    weights = dict(model.state_dict())
    for ours, theirs in TO_TRANSFORMERS:
        weights = {name.replace(ours, theirs): weight for name, weight in weights.items()}
    other = Qwen3ForCausalLM(config).eval()
    missing, unexpected = other.load_state_dict(weights, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise ValueError(f"names differ: missing {missing}, unexpected {unexpected}")
    other.tie_weights()
    return other


@torch.no_grad()
def logits_error(model: Model, encoder: ChatEncoder) -> float:
    """Largest difference of logits between the two, relative to their root mean square."""
    prompt = torch.tensor([encoder.prompt([("Who are you?", "I am a test.")], "What is a runner?")])
    ours, theirs = model(prompt), transformers_model(model)(prompt).logits
    return float((ours - theirs).abs().max() / ours.square().mean().sqrt())


def template_agrees(path: Path, encoder: ChatEncoder) -> bool:
    """Whether the file's template gives the tokens of training, with a system text and without."""
    source: str = gguf.GGUFReader(path).fields["tokenizer.chat_template"].contents()
    template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(source)
    turns = [("Hello!", "Hi."), ("What is a runner?", "A process.\nWith a model.")]
    messages: list[dict[str, str]] = []
    for asked, answered in turns:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    messages.append({"role": "user", "content": "  And a gateway?\n"})
    briefed = [{"role": "system", "content": "Be brief."}, *messages]
    last = messages[-1]["content"]
    wanted = (encoder.prompt(turns, last), encoder.prompt(turns, last, "Be brief."))
    rendered = [template.render(messages=chat, add_generation_prompt=True) for chat in (messages, briefed)]
    return all(encoder.whole.encode(text).ids == ids for text, ids in zip(rendered, wanted, strict=True))


def bytes_return(encoder: ChatEncoder) -> bool:
    """Whether text of all kinds comes back from its tokens unchanged."""
    text = "".join(map(chr, range(1, 0x800))) + " Grüße 你好 🙂 ok\r\n\t  "
    return encoder.whole.decode(encoder.text(text)) == text


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=MODEL_FILE)
    args = parser.parse_args(argv)
    model, encoder = read_model(args.model), read_encoder(args.model)
    error = logits_error(model, encoder)
    is_same, is_whole = template_agrees(args.model, encoder), bytes_return(encoder)
    print(f"logits against transformers: largest relative difference {error:.1e}")
    print(f"chat template gives the tokens of training: {is_same}")
    print(f"all text comes back from its tokens: {is_whole}")
    return 0 if error < MAX_RELATIVE_ERROR and is_same and is_whole else 1


if __name__ == "__main__":
    sys.exit(main())
