"""Tiny seeded models of each family: weights by a counter-based generator, so that files need not be stored.

`tools/make_goldens.py` feeds the same weights to `transformers` and stores the logits beside this file.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
EPS = 1e-6
N_CTX = 128


@dataclass(frozen=True)
class Tiny:
    """Sizes of a tiny model and what is special about it."""

    arch: str
    n_embd: int = 64
    n_head: int = 4
    n_head_kv: int = 2
    head_dim: int = 16
    n_ff: int = 96
    n_vocab: int = 260
    n_layer: int = 2
    is_tied: bool = False
    rope_base: float = 10000.0
    rope: Mapping[str, float | str] = field(default_factory=dict)  # keys below <arch>.rope.scaling.
    llama3_factor: float = 0.0  # > 0: frequencies scaled as llama 3.1 does, with this factor
    window: int = 0  # tokens that a layer with a window sees, its own among them
    period: int | tuple[bool, ...] = 6  # from one layer without a window to the next, or which have one
    logit_softcap: float = 0.0
    n_tap: int = 0  # of convolutions, which layers have that are not in `attends`
    attends: tuple[int, ...] = ()
    n_expert: int = 0  # in layers that are not dense
    n_expert_used: int = 0
    n_ff_exp: int = 0
    expert_step: int = 1  # from one layer with experts to the next
    chunk: int = 0  # tokens, of layers that see their own chunk
    temperature_length: int = 0
    n_encoder: int = 0  # layers of an encoder, beside n_layer of a decoder
    n_bucket: int = 0  # of distances
    is_gated: bool = True
    seed: int = 1

    @property
    def last_norm(self) -> str:
        """The name of the norm before the output matrix."""
        return "token_embd_norm" if self.arch == "lfm2" else "output_norm"

    def is_conv(self, layer: int) -> bool:
        """Whether the layer is a convolution."""
        return self.n_tap > 0 and layer not in self.attends

    def has_experts(self, layer: int) -> bool:
        """Whether the layer is not dense."""
        return self.n_expert > 0 and (layer + 1) % self.expert_step == 0

    @property
    def is_local(self) -> list[bool]:
        """Of each layer, whether it has a window."""
        if isinstance(self.period, tuple):
            return list(self.period)
        return [self.window > 0 and (i + 1) % self.period != 0 for i in range(self.n_layer)]


VARIANTS: Mapping[str, Tiny] = {
    "llama": Tiny("llama"),
    "llama-linear": Tiny("llama", rope={"type": "linear", "factor": 4.0}, seed=2),
    "llama-yarn": Tiny("llama", rope={"type": "yarn", "factor": 4.0, "original_context_length": 32}, seed=3),
    "llama-llama3": Tiny("llama", llama3_factor=8.0, is_tied=True, seed=4),
    "qwen2": Tiny("qwen2", seed=5),
    "qwen2-tied": Tiny("qwen2", is_tied=True, rope_base=1e6, seed=6),
    "qwen3": Tiny("qwen3", head_dim=32, seed=7),
    "gemma3": Tiny("gemma3", n_layer=7, head_dim=32, is_tied=True, rope_base=1e6, window=6, seed=8),
    "gemma3-linear": Tiny(
        "gemma3",
        n_layer=3,
        is_tied=True,
        rope_base=1e6,
        rope={"type": "linear", "factor": 8.0},
        window=5,
        period=3,
        seed=9,
    ),
    "lfm2": Tiny("lfm2", n_layer=5, is_tied=True, rope_base=1e6, n_tap=3, attends=(2, 4), seed=11),
    "lfm2-last": Tiny("lfm2", n_layer=3, is_tied=True, rope_base=1e6, n_tap=4, attends=(0,), seed=12),
    "qwen3moe": Tiny("qwen3moe", head_dim=32, n_expert=8, n_expert_used=3, n_ff_exp=32, n_layer=3, seed=13),
    "llama4": Tiny(
        "llama4",
        n_layer=5,
        rope_base=5e5,
        n_expert=4,
        n_expert_used=1,
        n_ff_exp=64,
        chunk=5,
        temperature_length=3,
        seed=14,
    ),
    "llama4-interleaved": Tiny(
        "llama4",
        n_layer=4,
        rope_base=5e5,
        llama3_factor=8.0,
        n_expert=128,
        n_expert_used=2,
        n_ff_exp=32,
        expert_step=2,
        chunk=7,
        temperature_length=4,
        seed=15,
    ),
    "t5": Tiny("t5", n_encoder=2, n_layer=3, n_head_kv=4, n_bucket=32, seed=16),
    "t5-plain": Tiny(
        "t5",
        n_encoder=3,
        n_layer=2,
        n_head_kv=4,
        head_dim=32,
        n_bucket=8,
        is_gated=False,
        is_tied=True,
        seed=17,
    ),
    "gemma3-capped": Tiny(
        "gemma3",
        n_layer=3,
        is_tied=True,
        rope_base=1e6,
        window=2,
        period=(True, False, True),
        logit_softcap=1.5,
        seed=10,
    ),
}

# llama 3.1's own numbers, scaled to a tiny context
LLAMA3_LOW_FREQ_FACTOR = 1.0
LLAMA3_HIGH_FREQ_FACTOR = 4.0
LLAMA3_ORIGINAL_CONTEXT = 32


START_TOKEN = 0  # of t5's decoder
N_ASKED = 45  # tokens of the prompt that its encoder is given: some are farther apart than buckets tell


def answer(tiny: Tiny) -> list[int]:
    """What a decoder behind an encoder is given after the fixed prompt."""
    return [START_TOKEN, *prompt(tiny, 40)[30:]]


def prompt(tiny: Tiny, n_tokens: int = 16) -> list[int]:
    """A fixed sequence of token ids."""
    return [(7 * i * i + 3 * i + tiny.seed) % tiny.n_vocab for i in range(n_tokens)]


def shapes(tiny: Tiny) -> dict[str, tuple[int, ...]]:
    """Every tensor by its GGUF name, outermost dimension first."""
    if tiny.n_encoder:
        return encoder_decoder_shapes(tiny)
    q, kv = tiny.n_head * tiny.head_dim, tiny.n_head_kv * tiny.head_dim
    found: dict[str, tuple[int, ...]] = {"token_embd": (tiny.n_vocab, tiny.n_embd)}
    for i in range(tiny.n_layer):
        layer: dict[str, tuple[int, ...]] = {"attn_norm": (tiny.n_embd,)}
        if tiny.is_conv(i):
            layer |= {
                "shortconv.in_proj": (3 * tiny.n_embd, tiny.n_embd),
                "shortconv.conv": (tiny.n_embd, tiny.n_tap),
                "shortconv.out_proj": (tiny.n_embd, tiny.n_embd),
            }
        else:
            layer |= {
                "attn_q": (q, tiny.n_embd),
                "attn_k": (kv, tiny.n_embd),
                "attn_v": (kv, tiny.n_embd),
                "attn_output": (tiny.n_embd, q),
            }
        layer |= {"ffn_norm": (tiny.n_embd,), **feed_forward_shapes(tiny, i)}
        if tiny.arch in ("qwen3", "qwen3moe", "gemma3", "lfm2") and not tiny.is_conv(i):
            layer |= {"attn_q_norm": (tiny.head_dim,), "attn_k_norm": (tiny.head_dim,)}
        if tiny.arch == "gemma3":
            layer |= {"post_attention_norm": (tiny.n_embd,), "post_ffw_norm": (tiny.n_embd,)}
        found |= {f"blk.{i}.{name}.weight": shape for name, shape in layer.items()}
        if tiny.arch == "qwen2":
            found |= {f"blk.{i}.attn_{n}.bias": (w,) for n, w in (("q", q), ("k", kv), ("v", kv))}
    found |= {"token_embd.weight": found.pop("token_embd"), f"{tiny.last_norm}.weight": (tiny.n_embd,)}
    if not tiny.is_tied:
        found["output.weight"] = (tiny.n_vocab, tiny.n_embd)
    return found


def encoder_decoder_shapes(tiny: Tiny) -> dict[str, tuple[int, ...]]:
    """Of t5."""
    width = tiny.n_head * tiny.head_dim
    into, out_of = (width, tiny.n_embd), (tiny.n_embd, width)

    def attention(prefix: str) -> dict[str, tuple[int, ...]]:
        names = {f"{prefix}attn_{name}": into for name in "qkv"}
        return names | {f"{prefix}attn_o": out_of, f"{prefix}attn_norm": (tiny.n_embd,)}

    found: dict[str, tuple[int, ...]] = {"token_embd": (tiny.n_vocab, tiny.n_embd)}
    for side, n_layer in (("enc", tiny.n_encoder), ("dec", tiny.n_layer)):
        for i in range(n_layer):
            layer = attention("") | {"ffn_norm": (tiny.n_embd,), **feed_forward_shapes(tiny, i)}
            if side == "dec":
                layer |= attention("cross_")
            if i == 0:
                layer["attn_rel_b"] = (tiny.n_bucket, tiny.n_head)
            found |= {f"{side}.blk.{i}.{name}": shape for name, shape in layer.items()}
        found[f"{side}.output_norm"] = (tiny.n_embd,)
    if not tiny.is_tied:
        found["output"] = (tiny.n_vocab, tiny.n_embd)
    return {f"{name}.weight": shape for name, shape in found.items()}


def feed_forward_shapes(tiny: Tiny, layer: int) -> dict[str, tuple[int, ...]]:
    """Of one layer, dense or with experts."""

    def parts(n_ff: int, suffix: str, *outer: int) -> dict[str, tuple[int, ...]]:
        return {
            f"ffn_gate{suffix}": (*outer, n_ff, tiny.n_embd),
            f"ffn_up{suffix}": (*outer, n_ff, tiny.n_embd),
            f"ffn_down{suffix}": (*outer, tiny.n_embd, n_ff),
        }

    if not tiny.is_gated:
        return {"ffn_up": (tiny.n_ff, tiny.n_embd), "ffn_down": (tiny.n_embd, tiny.n_ff)}
    if not tiny.has_experts(layer):
        return parts(tiny.n_ff, "")
    found = parts(tiny.n_ff_exp, "_exps", tiny.n_expert)
    if tiny.arch == "llama4":
        found |= parts(tiny.n_ff_exp, "_shexp")
    return {"ffn_gate_inp": (tiny.n_expert, tiny.n_embd), **found}


def weights(tiny: Tiny) -> dict[str, F32]:
    """Every tensor's values; the raw stream of Philox is the same in every version of numpy."""
    made: dict[str, F32] = {}
    for index, (name, shape) in enumerate(sorted(shapes(tiny).items())):
        n = math.prod(shape)
        raw = np.random.Philox(key=tiny.seed * 1000 + index).random_raw(n)
        uniform = (raw >> np.uint64(40)).astype(np.float32) / np.float32(2**24) * 2 - 1
        is_norm = name.endswith("norm.weight")
        scale = 0.2 if is_norm or name.endswith("bias") else math.sqrt(3.0 / shape[-1])
        if tiny.n_encoder and name.endswith("attn_q.weight"):
            scale *= tiny.head_dim**-0.5  # in place of a scale of scores
        made[name] = (uniform * np.float32(scale) + np.float32(is_norm)).reshape(shape)
    return made


def llama3_factors(tiny: Tiny) -> F32:
    """What each pair's frequency is divided by, [head_dim / 2]: the rule of the llama 3.1 reference code."""
    factors: list[float] = []
    for i in range(tiny.head_dim // 2):
        wavelength = 2 * math.pi * tiny.rope_base ** (2 * i / tiny.head_dim)
        longest = LLAMA3_ORIGINAL_CONTEXT / LLAMA3_LOW_FREQ_FACTOR
        shortest = LLAMA3_ORIGINAL_CONTEXT / LLAMA3_HIGH_FREQ_FACTOR
        if wavelength < shortest:
            factors.append(1.0)
        elif wavelength > longest:
            factors.append(tiny.llama3_factor)
        else:
            spread = LLAMA3_HIGH_FREQ_FACTOR - LLAMA3_LOW_FREQ_FACTOR
            smooth = (LLAMA3_ORIGINAL_CONTEXT / wavelength - LLAMA3_LOW_FREQ_FACTOR) / spread
            factors.append(1 / ((1 - smooth) / tiny.llama3_factor + smooth))
    return np.array(factors, np.float32)


def write(
    path: Path, tiny: Tiny, tensors: Mapping[str, F32 | tuple[bytes, gguf.GGMLQuantizationType]]
) -> None:
    """A GGUF file of the model.  A tensor is F32 values, or raw blocks with their type."""
    writer = gguf.GGUFWriter(path, tiny.arch)
    add_sizes(writer, tiny)
    add_family(writer, tiny)
    if tiny.n_encoder:
        add_unigrams(writer, tiny.n_vocab)
    else:
        add_vocabulary(writer, tiny.n_vocab)
    every = dict(tensors)
    if tiny.llama3_factor > 0:
        every["rope_freqs.weight"] = llama3_factors(tiny)
    all_shapes = shapes(tiny)
    for name, value in every.items():
        if isinstance(value, tuple):
            raw, kind = value
            writer.add_tensor(
                name, np.frombuffer(raw, np.uint8).reshape(*all_shapes[name][:-1], -1), raw_dtype=kind
            )
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_sizes(writer: gguf.GGUFWriter, tiny: Tiny) -> None:
    """What all families have."""
    writer.add_block_count(tiny.n_encoder or tiny.n_layer)
    writer.add_context_length(N_CTX)
    writer.add_embedding_length(tiny.n_embd)
    writer.add_feed_forward_length(tiny.n_ff)
    writer.add_head_count(tiny.n_head)
    if tiny.n_tap:
        writer.add_head_count_kv([0 if tiny.is_conv(i) else tiny.n_head_kv for i in range(tiny.n_layer)])
        writer.add_shortconv_l_cache(tiny.n_tap)
    else:
        writer.add_head_count_kv(tiny.n_head_kv)
    writer.add_key_length(tiny.head_dim)
    writer.add_value_length(tiny.head_dim)
    writer.add_layer_norm_rms_eps(EPS)
    writer.add_rope_freq_base(tiny.rope_base)
    writer.add_rope_dimension_count(tiny.head_dim)
    for key, value in tiny.rope.items():
        full = f"{tiny.arch}.rope.scaling.{key}"
        if isinstance(value, str):
            writer.add_string(full, value)
        elif isinstance(value, int):
            writer.add_uint32(full, value)
        else:
            writer.add_float32(full, value)


def add_family(writer: gguf.GGUFWriter, tiny: Tiny) -> None:
    """What only some families have."""
    if tiny.window:
        writer.add_sliding_window(tiny.window)
        writer.add_sliding_window_pattern(tiny.period)
    if tiny.logit_softcap:
        writer.add_final_logit_softcapping(tiny.logit_softcap)
    if tiny.n_expert:
        writer.add_expert_count(tiny.n_expert)
        writer.add_expert_used_count(tiny.n_expert_used)
        writer.add_expert_feed_forward_length(tiny.n_ff_exp)
    if tiny.arch == "llama4":
        writer.add_interleave_moe_layer_step(tiny.expert_step)
        writer.add_uint32("llama4.attention.chunk_size", tiny.chunk)
        writer.add_uint32("llama4.attention.temperature_length", tiny.temperature_length)
    if tiny.n_encoder:
        writer.add_decoder_block_count(tiny.n_layer)
        writer.add_relative_attn_buckets_count(tiny.n_bucket)
        writer.add_decoder_start_token_id(START_TOKEN)


def add_vocabulary(writer: gguf.GGUFWriter, n_vocab: int) -> None:
    """A byte-level vocabulary with one merge: a letter a byte, a pair, then numbered control tokens."""
    letters = byte_letters()
    n_control = n_vocab - len(letters) - 2
    tokens = [*letters, "ab", *(f"<|{i}|>" for i in range(n_control)), "<|end|>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * (len(letters) + 1) + [3] * (n_control + 1))
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(n_vocab - 1)


def add_unigrams(writer: gguf.GGUFWriter, n_vocab: int) -> None:
    """A unigram vocabulary: letters, some pairs that are likelier, and the words of small numbers."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    pairs = [a + b for a in "aeiou" for b in "nrst"]
    texts = ["\u2581", *letters, *pairs, *(f"\u2581{a}" for a in letters)]
    words = [f"\u2581n{i}" for i in range(n_vocab - len(texts) - 3)]
    writer.add_tokenizer_model("t5")
    writer.add_token_list(["<pad>", "<unk>", *texts, *words, "</s>"])
    writer.add_token_types([3, 2] + [1] * (len(texts) + len(words)) + [3])
    writer.add_token_scores([0.0, 0.0, *(-2.0 - 0.01 * i for i in range(len(texts) + len(words))), 0.0])
    writer.add_unk_token_id(1)
    writer.add_eos_token_id(n_vocab - 1)
    writer.add_add_space_prefix(True)
    writer.add_remove_extra_whitespaces(True)


def byte_letters() -> list[str]:
    """The letter of each byte in a byte-level vocabulary: itself where it prints, else one from 256 on."""
    shown = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = (chr(256 + i) for i in range(256 - len(shown)))
    return [chr(b) if b in shown else next(hidden) for b in range(256)]
