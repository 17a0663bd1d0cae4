"""Whether a sound GGUF file describes a model that can be run: sizes, vocabulary, rope, template.

The reader has made sure that the bytes are what the header says.  This is about what the numbers mean, for
every family alike; a family file then asks for its own tensors by name and shape.  Nothing is trusted that a
kernel or a tokenizer would later index with.
"""

import math
from collections.abc import Iterator

import numpy as np

from actors.errors import Unsupported
from actors.runner import _native
from actors.runner.gguf.reader import GGUFFile
from kernels.ops.experts import MAX_EXPERTS
from kernels.ops.sampling import MAX_VOCAB

FAMILIES = ("llama", "qwen2", "qwen3", "gemma3", "lfm2", "qwen3moe", "llama4", "t5")
WITH_EXPERTS = ("qwen3moe", "llama4")
# Bounds a few times above the largest model known, so that products of sizes stay far below 2^63.
MAX_LAYERS = 1024
MAX_EMBD = 1 << 18
MAX_FF = 1 << 20
MAX_HEADS = 4096
MAX_HEAD_DIM = 4096
MAX_CTX = 1 << 24
MAX_TEMPLATE_BYTES = 1 << 18  # the longest in use are some tens of KiB
TOKEN_TYPES = range(7)  # 0 undefined, 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte


def check_model(file: GGUFFile) -> None:
    """Check what all families share.  Raises Unsupported for another family, ModelError for nonsense."""
    check_without_merges(file)
    check_merges(file)


def check_without_merges(file: GGUFFile) -> None:
    """`check_model` but for its slow part.  Whoever makes a tokenizer finds out about bad merges there."""
    arch = file.get_str("general.architecture")
    if arch not in FAMILIES:
        known = ", ".join(FAMILIES)
        file.fail(f"model family {arch!r} is not supported, expected one of {known}", kind=Unsupported)
    head_dim = _check_sizes(file, arch)
    _check_rope(file, arch, head_dim)
    _check_experts(file, arch)
    n_vocab = check_vocabulary(file)
    _check_vocab_rows(file, arch, n_vocab)


def check_vocabulary(file: GGUFFile) -> int:
    """Check the vocabulary that a file holds and the templates over it; gives n_vocab.

    The lists have one length, special ids are in it.  Raises ModelError.
    """
    file.get_str("tokenizer.ggml.model")
    n_vocab = len(file.get_strings("tokenizer.ggml.tokens"))
    if not 1 <= n_vocab <= MAX_VOCAB:
        file.fail(f"'tokenizer.ggml.tokens' has {n_vocab} tokens, expected 1 to {MAX_VOCAB}")
    _check_per_token(file, n_vocab)
    for key, token_id in _special_ids(file):
        if not 0 <= token_id < n_vocab:
            file.fail(f"{key!r} is {token_id}, expected a token id below {n_vocab}")
    _check_templates(file)
    return n_vocab


def check_merges(file: GGUFFile) -> None:
    """A merge is two known tokens with a space between, and what they join to is known.  Raises ModelError.

    280 000 merges take 50 ms.
    """
    tokens = file.get_strings("tokenizer.ggml.tokens")
    merges = file.get_strings("tokenizer.ggml.merges", None)
    if merges is None:
        return
    index = _native.first_bad_merge(_native.Index(tokens.data, tokens.starts), merges.data, merges.starts)
    if index >= 0:
        text = merges.item_bytes(index).decode("utf-8", "replace")
        what = f"merge {index} of 'tokenizer.ggml.merges' is {text[:80]!r}"
        file.fail(f"{what}, expected two tokens of the vocabulary that join to a third")


def _bounded(file: GGUFFile, key: str, limit: int, default: int | None = None) -> int:
    """The integer under key, from 1 to limit; with a default the key may be absent."""
    value = file.get_int(key) if default is None else file.get_int(key, default)
    if not 1 <= value <= limit:
        file.fail(f"key {key!r} is {value}, expected 1 to {limit}")
    return value


def _check_sizes(file: GGUFFile, arch: str) -> int:
    """Layers, widths, heads and context; gives head_dim."""
    n_layer = _bounded(file, f"{arch}.block_count", MAX_LAYERS)
    _bounded(file, f"{arch}.decoder_block_count", MAX_LAYERS, n_layer)
    _bounded(file, f"{arch}.context_length", MAX_CTX)
    _bounded(file, f"{arch}.feed_forward_length", MAX_FF)
    n_embd = _bounded(file, f"{arch}.embedding_length", MAX_EMBD)
    n_head = _bounded(file, f"{arch}.attention.head_count", MAX_HEADS)
    _check_kv_heads(file, f"{arch}.attention.head_count_kv", n_layer, n_head)
    key_length = f"{arch}.attention.key_length"
    if key_length not in file.metadata and n_embd % n_head:
        file.fail(f"{n_head} heads do not divide an embedding of {n_embd}, and {key_length!r} is missing")
    head_dim = _bounded(file, key_length, MAX_HEAD_DIM, max(1, n_embd // n_head))
    _bounded(file, f"{arch}.attention.value_length", MAX_HEAD_DIM, head_dim)
    eps_key = f"{arch}.attention.layer_norm_rms_epsilon"
    eps = file.get_float(eps_key)
    if not 0 < eps < 1:  # a NaN fails this too
        file.fail(f"key {eps_key!r} is {eps}, expected a number between 0 and 1")
    return head_dim


def _check_kv_heads(file: GGUFFile, key: str, n_layer: int, n_head: int) -> None:
    """Layers have key/value heads that divide the others evenly, but for those without attention: 0."""
    counts = set(file.get_per_layer(key, n_layer, n_head))
    if not counts - {0}:
        file.fail(f"key {key!r} is 0, expected 1 to {MAX_HEADS} in one layer at least")
    for n_head_kv in counts - {0}:
        if not 1 <= n_head_kv <= MAX_HEADS:
            file.fail(f"key {key!r} is {n_head_kv}, expected 1 to {MAX_HEADS}")
        if n_head % n_head_kv:
            file.fail(f"{n_head_kv} key/value heads do not divide {n_head} heads ({key!r})")


def _check_rope(file: GGUFFile, arch: str, head_dim: int) -> None:
    """Rotation turns pairs, at finite positive frequencies."""
    key = f"{arch}.rope.dimension_count"
    n_rot = file.get_int(key, head_dim)
    if n_rot % 2 or not 2 <= n_rot <= head_dim:
        file.fail(f"key {key!r} is {n_rot}, expected an even number from 2 to the head size {head_dim}")
    for name in ("rope.freq_base", "rope.scaling.factor", "rope.scale_linear"):
        value = file.get_float(f"{arch}.{name}", 1.0)
        if not (math.isfinite(value) and value > 0):
            file.fail(f"key '{arch}.{name}' is {value}, expected a finite number above 0")
    _bounded(file, f"{arch}.rope.scaling.original_context_length", MAX_CTX, 1)


def _check_experts(file: GGUFFile, arch: str) -> None:
    if arch in WITH_EXPERTS:
        _bounded(file, f"{arch}.expert_count", MAX_EXPERTS)
    n_expert = file.get_int(f"{arch}.expert_count", 0)
    n_used = file.get_int(f"{arch}.expert_used_count", 0)
    if not 0 <= n_used <= n_expert <= MAX_EXPERTS:
        file.fail(f"uses {n_used} of {n_expert} experts ('{arch}.expert_used_count'), expected at most all")
    if arch in WITH_EXPERTS:
        _bounded(file, f"{arch}.expert_used_count", n_expert)
        _bounded(file, f"{arch}.expert_feed_forward_length", MAX_FF)


def _check_vocab_rows(file: GGUFFile, arch: str, n_vocab: int) -> None:
    """The embedding and the output matrix have a row for each token, as wide as the model."""
    declared = file.get_int(f"{arch}.vocab_size", n_vocab)
    if declared != n_vocab:
        file.fail(f"key '{arch}.vocab_size' is {declared}, but the vocabulary has {n_vocab} tokens")
    expected = (file.get_int(f"{arch}.embedding_length"), n_vocab)
    if "token_embd.weight" not in file.tensors:
        file.fail("tensor 'token_embd.weight' is missing", mend="this may be a vocabulary or an adapter")
    for name in ("token_embd.weight", "output.weight"):
        info = file.tensors.get(name)
        if info is not None and info.shape != expected:
            file.fail(f"tensor {name!r} has shape {info.shape}, expected {expected} (n_embd, n_vocab)")


def _check_per_token(file: GGUFFile, n_vocab: int) -> None:
    """Scores and token types, where there are any: one for each token, of the right kind."""
    for key, kind in (("tokenizer.ggml.scores", np.floating), ("tokenizer.ggml.token_type", np.integer)):
        values = file.get_numbers(key, None)
        if values is None:
            continue
        if len(values) != n_vocab:
            file.fail(f"{key!r} has {len(values)} items, but the vocabulary has {n_vocab} tokens")
        if not np.issubdtype(values.dtype, kind):
            file.fail(f"{key!r} is an array of {values.dtype.name}, expected one of {kind.__name__} numbers")
        if kind is np.floating and not np.isfinite(values).all():
            file.fail(f"{key!r} has a score that is not finite")
        if kind is np.integer and not np.isin(values, TOKEN_TYPES).all():
            file.fail(f"{key!r} has a token type outside 0 to {TOKEN_TYPES[-1]}")


def _special_ids(file: GGUFFile) -> Iterator[tuple[str, int]]:
    """Every token id that a metadata key names."""
    for key in file.metadata:
        if not key.startswith("tokenizer.ggml."):
            continue
        if key.endswith("_token_id"):
            yield key, file.get_int(key)
        elif key.endswith("_token_ids"):
            ids = file.get_numbers(key)
            if not np.issubdtype(ids.dtype, np.integer):
                file.fail(f"{key!r} is an array of {ids.dtype.name}, expected one of integers")
            yield from ((key, int(token_id)) for token_id in ids)


def _check_templates(file: GGUFFile) -> None:
    for key, value in file.metadata.items():
        if not key.startswith("tokenizer.chat_template") or not isinstance(value, str):
            continue
        n_bytes = len(value.encode())
        if n_bytes > MAX_TEMPLATE_BYTES:
            file.fail(f"{key!r} is {n_bytes} bytes long, expected at most {MAX_TEMPLATE_BYTES}")
