"""Reading a JSON request body as Ollama's clients expect it to be read.

Lenient where Ollama is: unknown fields are ignored, field names match whatever their case, whatever follows
the first JSON value is ignored, and null means absent.  Strict where a program would otherwise be misled: a
field of the wrong type is refused, in the words that Ollama's decoder uses, which clients show to people.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Never, cast

from actors.errors import RequestError

JsonObject = dict[str, object]

MAX_DEPTH = 200  # containers inside containers; real requests (tool schemas) stay below 30
MAX_INT = 2**63 - 1
_BLANK = " \t\r\n"


def _no_constant(text: str) -> Never:
    raise json.JSONDecodeError(f"{text} is not JSON", text, 0)


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def decode_json(body: bytes) -> object:
    """The first JSON value of a body; RequestError when there is none, or one nested deeper than MAX_DEPTH.

    Invalid UTF-8 and lone surrogates become U+FFFD, as Go's decoder does it.
    """
    text = body.decode("utf-8", "replace")
    start = len(text) - len(text.lstrip(_BLANK))
    try:
        value, _ = cast("tuple[object, int]", _DECODER.raw_decode(text, start))
    except json.JSONDecodeError as exc:
        raise RequestError(_decoder_text(text, exc), where="body") from exc
    except (RecursionError, ValueError) as exc:  # ValueError: an integer of more than 4300 digits
        raise RequestError(f"the body is not JSON that can be read here: {exc}", where="body") from exc
    _check_depth(value)
    return _mended(value) if "\\u" in text else value


def _decoder_text(text: str, exc: json.JSONDecodeError) -> str:
    if exc.pos >= len(text.rstrip(_BLANK)) or exc.msg.startswith("Unterminated"):
        return "unexpected EOF"
    character = text[exc.pos].replace("\\", "\\\\").replace("'", "\\'")
    looking_for = {
        "Expecting property name enclosed in double quotes": "looking for beginning of object key string",
        "Expecting ':' delimiter": "after object key",
        "Expecting ',' delimiter": "after object key:value pair or array element",
    }.get(exc.msg, "looking for beginning of value")
    return f"invalid character '{character}' {looking_for}"


def _check_depth(value: object) -> None:
    level: list[object] = [value]
    for _ in range(MAX_DEPTH):
        below: list[object] = []
        for item in level:
            if isinstance(item, dict):
                below.extend(cast("JsonObject", item).values())
            elif isinstance(item, list):
                below.extend(cast("list[object]", item))
        level = [item for item in below if isinstance(item, dict | list)]
        if not level:
            return
    raise RequestError(f"the body is nested deeper than {MAX_DEPTH} levels", where="body")


def _mended(value: object) -> object:
    """Lone surrogates replaced, everywhere; they could be neither encoded nor tokenised."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_mended(item) for item in cast("list[object]", value)]
    if isinstance(value, dict):
        return {str(_mended(key)): _mended(item) for key, item in cast("JsonObject", value).items()}
    return value


def kind_of(value: object) -> str:
    """What a JSON value is, in the words of Ollama's decoder."""
    match value:
        case bool():
            return "bool"
        case int() | float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
        case None:
            return "null"
        case _:
            return "object"


@dataclass(frozen=True, slots=True)
class Fields:
    """A JSON object of a known kind (`struct`, for error texts), looked up by lower-case name."""

    struct: str
    values: Mapping[str, object]
    path: str = ""

    def raw(self, name: str) -> object:
        """The value as it is; None when absent or null."""
        return self.values.get(name.lower())

    def text(self, name: str, default: str = "") -> str:
        """A string."""
        value = self._typed(name, "string", lambda v: isinstance(v, str))
        return default if value is None else str(value)

    def truth(self, name: str, default: bool = False) -> bool:
        """true or false."""
        value = self._typed(name, "bool", lambda v: isinstance(v, bool))
        return default if value is None else bool(value)

    def whole(self, name: str) -> int | None:
        """An integer of at most 64 bits; 3.0 is one, 3.5 is not."""
        value = self._typed(name, "int", _is_whole)
        return None if value is None else int(cast("float", value))

    def number(self, name: str) -> float | None:
        """A number."""
        value = self._typed(name, "float64", lambda v: isinstance(v, int | float) and not isinstance(v, bool))
        return None if value is None else _as_float(cast("float", value))

    def items(self, name: str, go_type: str = "[]interface {}") -> Sequence[object]:
        """An array; empty when absent."""
        value = self._typed(name, go_type, lambda v: isinstance(v, list))
        return () if value is None else cast("list[object]", value)

    def table(self, name: str, go_type: str = "map[string]interface {}") -> JsonObject | None:
        """An object, its keys as they are written."""
        value = self._typed(name, go_type, lambda v: isinstance(v, dict))
        return None if value is None else cast("JsonObject", value)

    def fields(self, name: str, struct: str) -> "Fields | None":
        """An object whose field names match whatever their case."""
        value = self.table(name, struct)
        return None if value is None else Fields(struct, lowered(value), self._path(name))

    def each(self, name: str, struct: str) -> list["Fields"]:
        """An array of such objects."""
        found: list[Fields] = []
        for item in self.items(name, f"[]{struct}"):
            if not isinstance(item, dict):
                self.refuse(name, item, struct)
            found.append(Fields(struct, lowered(cast("JsonObject", item)), self._path(name)))
        return found

    def texts(self, name: str) -> tuple[str, ...]:
        """An array of strings."""
        values = self.items(name, "[]string")
        for value in values:
            if not isinstance(value, str):
                self.refuse(name, value, "string")
        return tuple(str(value) for value in values)

    def refuse(self, name: str, value: object, go_type: str) -> Never:
        """RequestError: the field has a value of the wrong type."""
        root = self.struct if not self.path else self.path.partition(".")[0]
        place = self._path(name).partition(".")[2]
        raise RequestError(
            f"json: cannot unmarshal {kind_of(value)} into Go struct field {root}.{place} of type {go_type}",
            where=f"body.{place}",
        )

    def _path(self, name: str) -> str:
        return f"{self.path or self.struct}.{name}"

    def _typed(self, name: str, go_type: str, is_right: Callable[[object], bool]) -> object:
        value = self.raw(name)
        if value is not None and not is_right(value):
            self.refuse(name, value, go_type)
        return value


def lowered(table: JsonObject) -> JsonObject:
    """The object with lower-case keys; of two that differ only in case the later one counts."""
    return {key.lower(): value for key, value in table.items()}


def read_fields(body: bytes, struct: str, *, empty_text: str = "missing request body") -> Fields:
    """A request's fields; RequestError: `empty_text` for an empty body, the decoder's text for a bad one."""
    if not body.strip():
        raise RequestError(empty_text, where="body")
    value = decode_json(body)
    if value is None:
        return Fields(struct, {})
    if not isinstance(value, dict):
        raise RequestError(
            f"json: cannot unmarshal {kind_of(value)} into Go value of type api.{struct}", where="body"
        )
    return Fields(struct, lowered(cast("JsonObject", value)))


def _is_whole(value: object) -> bool:
    if isinstance(value, bool):
        return False
    if isinstance(value, float):
        return value.is_integer() and abs(value) <= MAX_INT
    return isinstance(value, int) and abs(value) <= MAX_INT


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError as exc:
        raise RequestError("a number is too large", where="body") from exc
