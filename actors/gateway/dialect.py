"""What differs between the two APIs on the wire: how errors look, and how streams are framed."""

from typing import Protocol

import msgspec

from actors.errors import ModelNotFound, QueueFull, RequestError, RuntimeFault

QUEUE_FULL_TEXT = "server busy, please try again.  maximum pending requests exceeded"


class Dialect(Protocol):
    """Framing and errors of one API."""

    media_type: str  # of a stream
    has_comments: bool  # in a stream, for people: clients ignore them
    empty_body_text: str

    def error(self, fault: RuntimeFault) -> object:
        """The JSON value that tells of a fault."""
        ...

    def frame(self, value: object) -> bytes:
        """One value of a stream."""
        ...

    def comment(self, text: str) -> bytes:
        """A comment, where there are any."""
        ...


class Native:
    """Ollama's own: {"error": text}, and one JSON object per line."""

    media_type = "application/x-ndjson"
    has_comments = False  # clients take every line for a part of the answer, and fail at an empty one
    empty_body_text = "missing request body"

    def error(self, fault: RuntimeFault) -> object:
        """The JSON value that tells of a fault."""
        return {"error": error_text(fault)}

    def frame(self, value: object) -> bytes:
        """One line."""
        return msgspec.json.encode(value) + b"\n"

    def comment(self, text: str) -> bytes:
        """There are none."""
        raise AssertionError(f"{text!r} has no place in lines of JSON")


class OpenAI:
    """OpenAI's: {"error": {...}}, and server-sent events."""

    media_type = "text/event-stream"
    has_comments = True
    empty_body_text = "EOF"
    done = b"data: [DONE]\n\n"

    def error(self, fault: RuntimeFault) -> object:
        """The JSON value that tells of a fault."""
        kind = {400: "invalid_request_error", 413: "invalid_request_error", 404: "not_found_error"}
        return {
            "error": {
                "message": error_text(fault),
                "type": kind.get(fault.http_status, "api_error"),
                "param": None,
                "code": None,
            }
        }

    def frame(self, value: object) -> bytes:
        """One event."""
        return b"data: " + msgspec.json.encode(value) + b"\n\n"

    def comment(self, text: str) -> bytes:
        """A line that begins with a colon, and one line whatever the text."""
        return b": " + " ".join(text.split()).encode() + b"\n\n"


NATIVE = Native()
OPENAI = OpenAI()


def error_text(fault: RuntimeFault) -> str:
    """The text clients see: exact where clients look for words, with what mends it elsewhere."""
    match fault:
        case QueueFull():
            return QUEUE_FULL_TEXT
        case ModelNotFound() | RequestError():
            return fault.message
        case _:
            return str(fault)
