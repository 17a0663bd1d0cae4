"""Checkpoint to GGUF: `python -m tools.train_builtin.export`.

Writes the Q8_0 model, then the golden logits and the questions for tests, both made from what the file
says: weights are read back from the GGUF and dequantised, never taken from the checkpoint.
"""

import argparse
import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, LlamaFileType
from tokenizers import Tokenizer

from tools.train_builtin.data import CHAT_TEMPLATE, IM_END, SPECIAL, ChatEncoder
from tools.train_builtin.model import Model, Shape

ROOT = Path(__file__).resolve().parents[2]
MODEL_FILE = ROOT / "actors/gateway/library/builtin/handbook.gguf"
GOLDEN_FILE = ROOT / "tests/golden/builtin_logits.json"
COMMAND = "python -m tools.train_builtin"
GOLDEN_QUESTION = "How do I add a model?"
MAX_FILE_BYTES = 8 * 1024 * 1024
N_TOP, N_GREEDY = 20, 32


def write_model(checkpoint: dict[str, Any], out: Path) -> None:
    """Write one GGUF v3 file: matrices Q8_0, norms F32, recipe and licence in the metadata."""
    shape = Shape(**checkpoint["shape"])
    writer = gguf.GGUFWriter(out, "qwen3")
    _write_about(writer, checkpoint)
    writer.add_context_length(shape.n_ctx_train)
    writer.add_embedding_length(shape.n_embd)
    writer.add_block_count(shape.n_layer)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_head_kv)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(shape.rms_eps)
    writer.add_file_type(LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _write_vocabulary(writer, checkpoint["tokenizer"])
    for name, weight in checkpoint["weights"].items():
        values = weight.numpy().astype(np.float32)
        if values.ndim == 1:
            writer.add_tensor(name, values)
        else:
            kind = GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    out.parent.mkdir(parents=True, exist_ok=True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if out.stat().st_size > MAX_FILE_BYTES:
        raise ValueError(f"{out} is {out.stat().st_size} bytes, over {MAX_FILE_BYTES}: take a smaller shape")


def _write_about(writer: gguf.GGUFWriter, checkpoint: dict[str, Any]) -> None:
    n_weights = sum(weight.numel() for weight in checkpoint["weights"].values())
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name("handbook")
    writer.add_author("the authors of the runtime")
    writer.add_description(
        "The built-in model of the runtime: answers questions about the runtime, and nothing else."
    )
    writer.add_license("apache-2.0")
    writer.add_size_label(f"{n_weights / 1e6:.1f}M")
    writer.add_languages(["en"])
    recipe = {"command": COMMAND, "torch": torch.__version__.split("+")[0], **checkpoint["recipe"]}
    writer.add_string("general.training_recipe", json.dumps(recipe))


def _write_vocabulary(writer: gguf.GGUFWriter, tokenizer_json: str) -> None:
    bpe = json.loads(tokenizer_json)["model"]
    tokens = sorted(bpe["vocab"], key=bpe["vocab"].__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [gguf.TokenType.CONTROL if token in SPECIAL else gguf.TokenType.NORMAL for token in tokens]
    )
    writer.add_token_merges([" ".join(pair) for pair in bpe["merges"]])
    writer.add_eos_token_id(bpe["vocab"][IM_END])
    writer.add_pad_token_id(bpe["vocab"][SPECIAL[0]])
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def read_model(path: Path) -> Model:
    """The model a GGUF file holds, its weights dequantised to F32."""
    reader = gguf.GGUFReader(path)

    def number(key: str) -> Any:  # noqa: ANN401  # a GGUF value is an int or a float, as its key says
        return reader.fields[f"qwen3.{key}"].contents()

    weights = {
        str(tensor.name): torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())
        for tensor in reader.tensors
    }
    shape = Shape(
        n_vocab=weights["token_embd.weight"].shape[0],
        n_embd=number("embedding_length"),
        n_layer=number("block_count"),
        n_head=number("attention.head_count"),
        n_head_kv=number("attention.head_count_kv"),
        head_dim=number("attention.key_length"),
        n_ff=number("feed_forward_length"),
        n_ctx_train=number("context_length"),
        rope_base=number("rope.freq_base"),
        rms_eps=number("attention.layer_norm_rms_epsilon"),
    )
    model = Model(shape)
    model.load_state_dict(weights)
    return model.eval()


@torch.no_grad()
def golden(model: Model, encoder: ChatEncoder) -> dict[str, Any]:
    """Top logits after a fixed prompt and the greedy tokens that follow, with how they were made."""
    prompt = encoder.prompt([], GOLDEN_QUESTION)
    last = model(torch.tensor([prompt]))[0, -1]
    top = last.topk(N_TOP)
    ids = list(prompt)
    for _ in range(N_GREEDY):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return {
        "made_by": {
            "program": "tools/train_builtin/export.py",
            "command": COMMAND,
            "torch": torch.__version__,
            "gguf": importlib.metadata.version("gguf"),
            "model": str(MODEL_FILE.relative_to(ROOT)),
            "arithmetic": "F32 in PyTorch on the CPU, Q8_0 weights dequantised; logits of the last position",
        },
        "question": GOLDEN_QUESTION,
        "prompt_ids": prompt,
        "top_ids": top.indices.tolist(),
        "top_logits": top.values.tolist(),
        "logits_rms": float(last.square().mean().sqrt()),
        "greedy_ids": ids[len(prompt) :],
        "greedy_text": encoder.whole.decode(ids[len(prompt) :], skip_special_tokens=False),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, default=Path("build/builtin.pt"))
    parser.add_argument("--out", type=Path, default=MODEL_FILE)
    parser.add_argument("--golden", type=Path, default=GOLDEN_FILE)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # so that the golden numbers do not depend on how a sum was split
    checkpoint: dict[str, Any] = torch.load(args.checkpoint, weights_only=True)
    part = args.out.with_suffix(".part")  # readers of the old file keep it until the new one is whole
    write_model(checkpoint, part)
    part.replace(args.out)
    encoder = ChatEncoder(Tokenizer.from_str(checkpoint["tokenizer"]))
    args.golden.write_text(json.dumps(golden(read_model(args.out), encoder), indent=1) + "\n", "utf-8")
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
