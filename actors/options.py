"""The options of a request, as Ollama names them, and their types.

What an option means is decided where it is used; here is only which names exist and what values they take.
"""

from collections.abc import Iterable
from typing import Literal

from actors.errors import RequestError

OptionValue = bool | int | float | str | list[str]
Kind = Literal["int", "float", "bool", "strings"]

OPTIONS: dict[str, Kind] = {
    # what decides how a model is loaded
    "num_ctx": "int",
    "num_batch": "int",
    "num_gpu": "int",
    "main_gpu": "int",
    "use_mmap": "bool",
    "num_thread": "int",
    "num_parallel": "int",  # ours: Ollama has it for all models together only
    "draft_num_predict": "int",
    # what decides how the next token is chosen, and when to stop
    "num_keep": "int",
    "seed": "int",
    "num_predict": "int",
    "top_k": "int",
    "top_p": "float",
    "min_p": "float",
    "typical_p": "float",
    "repeat_last_n": "int",
    "temperature": "float",
    "repeat_penalty": "float",
    "presence_penalty": "float",
    "frequency_penalty": "float",
    "stop": "strings",
    "ignore_eos": "bool",  # ours: llama.cpp and vLLM have it
}
DEPRECATED = frozenset(
    {
        "penalize_newline", "low_vram", "f16_kv", "logits_all", "vocab_only", "use_mlock", "mirostat",
        "mirostat_tau", "mirostat_eta", "numa", "tfs_z",
    }
)  # fmt: skip

_GO_TYPES: dict[Kind, str] = {
    "int": "integer",
    "float": "float32",
    "bool": "boolean",
    "strings": "array of strings",
}
_INT_LIMIT = 2**63


def option_kind(name: str) -> Kind:
    """The type of an option; RequestError naming it when there is none of that name."""
    kind = OPTIONS.get(name)
    if kind is None:
        raise RequestError(
            f"unknown parameter '{name}'", where="options", mend=f"known: {', '.join(OPTIONS)}"
        )
    return kind


def parse_option(name: str, texts: Iterable[str]) -> OptionValue:
    """The value of an option from words a user typed; only `stop` takes several."""
    kind, words = option_kind(name), list(texts)
    if kind == "strings":
        return words
    if len(words) != 1:
        raise RequestError(f"parameter '{name}' takes one value, {len(words)} were given", where="options")
    word = words[0].strip()
    try:
        match kind:
            case "bool":
                return {"true": True, "1": True, "false": False, "0": False}[word.lower()]
            case "float":
                return _finite(name, float(word))
            case "int":
                return check_option(name, int(word) if "." not in word else float(word))
    except (ValueError, KeyError) as exc:
        raise _wrong_type(name, kind) from exc


def check_option(name: str, value: object) -> OptionValue:
    """A JSON value of an option, in its type: floats become integers where those are meant.

    RequestError `option "temperature" must be of type float32` otherwise.
    """
    kind = option_kind(name)
    match kind, value:
        case "bool", bool():
            return value
        case "strings", str():
            return [value]
        case "strings", list():
            words = [item for item in value if isinstance(item, str)]  # pyright: ignore[reportUnknownVariableType]  # narrowed from object
            if len(words) == len(value):  # pyright: ignore[reportUnknownArgumentType]  # as above
                return words
        case "int" | "float", bool():
            pass
        case "int", int() | float():
            # seeds have up to 63 bits, which a float would round
            if -_INT_LIMIT <= value < _INT_LIMIT:
                return int(value)
        case "float", int() | float():
            return _finite(name, value)
        case _:
            pass
    raise _wrong_type(name, kind)


def _finite(name: str, value: float) -> float:
    if not -3.5e38 < value < 3.5e38:  # beyond a float32, infinite, or not a number
        raise _wrong_type(name, "float")
    return float(value)


def _wrong_type(name: str, kind: Kind) -> RequestError:
    return RequestError(f'option "{name}" must be of type {_GO_TYPES[kind]}', where="options")
