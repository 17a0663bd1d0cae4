"""What a model file says of itself, for the library.

Run in a short-lived process, since the file may be hostile.
"""

import itertools
from pathlib import Path
from typing import BinaryIO

import msgspec

from actors.errors import RuntimeFault
from actors.protocol import ErrorInfo, ModelInfo, Scalar, TensorEntry
from actors.runner.gguf.check import check_model
from actors.runner.gguf.reader import GGUFFile
from actors.runner.gguf.values import StringArray, Value
from actors.runner.models.families import read_hparams

MAX_ARRAY_ITEMS = 5  # longer arrays arrive empty: nobody reads 128k tokens in a listing

# general.file_type of the GGUF specification, as people write it
FILE_TYPES = {
    **{0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K"},
    **{11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M"},
    **{18: "Q6_K", 25: "IQ4_NL", 32: "BF16", 38: "MXFP4"},
}


def inspect_to(out: BinaryIO, path: str) -> int:
    """Write a ModelInfo, or an ErrorInfo, as JSON; gives the exit code."""
    try:
        answer: ModelInfo | ErrorInfo = inspect(Path(path))
    except RuntimeFault as exc:
        answer = ErrorInfo(exc.code, exc.message, exc.where, exc.mend, exc.http_status)
    out.write(msgspec.json.encode(answer))
    out.flush()
    return 1 if isinstance(answer, ErrorInfo) else 0


def inspect(path: Path) -> ModelInfo:
    """Read the header of the file at path; ModelError when it is damaged or hostile."""
    with GGUFFile.open(path) as file:
        return describe(file)


def describe(file: GGUFFile) -> ModelInfo:
    """What the header says; text that is not UTF-8 has U+FFFD.  ModelError names a key of the wrong type."""
    arch = file.get_str("general.architecture")
    is_supported, reason = _supported(file)
    return ModelInfo(
        architecture=arch,
        metadata={key: _plain(value) for key, value in file.metadata.items()},
        tensors=tuple(TensorEntry(i.name, i.dtype.name, i.shape) for i in file.tensors.values()),
        n_parameters=sum(info.n_elements for info in file.tensors.values()),
        file_type=_file_type(file),
        chat_template=file.get_str("tokenizer.chat_template", None),
        is_supported=is_supported,
        reason=reason,
        bos_text=_token_text(file, "bos"),
        eos_text=_token_text(file, "eos"),
    )


def _supported(file: GGUFFile) -> tuple[bool, str]:
    try:
        check_model(file)
        read_hparams(file)
    except RuntimeFault as exc:
        return False, str(exc)
    return True, ""


def _plain(value: Value) -> Scalar | list[Scalar]:
    if isinstance(value, str | bool | int | float):
        return value
    if len(value) > MAX_ARRAY_ITEMS:
        return []
    if isinstance(value, StringArray):
        return [_item_text(value, index) for index in range(len(value))]
    return list(value.tolist())


def _item_text(strings: StringArray, index: int) -> str:
    return strings.item_bytes(index).decode("utf-8", "replace")


def _file_type(file: GGUFFile) -> str:
    """The quantisation as the file calls it; the most common tensor type where it does not."""
    known = FILE_TYPES.get(file.get_int("general.file_type", -1))
    if known is not None:
        return known
    names = sorted(info.dtype.name for info in file.tensors.values() if len(info.shape) > 1)
    groups = [(len(list(group)), name) for name, group in itertools.groupby(names)]
    return max(groups)[1] if groups else "unknown"


def _token_text(file: GGUFFile, which: str) -> str:
    """The text of a special token that templates mention; empty when the file names none."""
    index = file.get_int(f"tokenizer.ggml.{which}_token_id", -1)
    tokens = file.get_strings("tokenizer.ggml.tokens", None)
    return _item_text(tokens, index) if tokens is not None and 0 <= index < len(tokens) else ""
