"""The messages and what is published of them."""

import msgspec
import pytest

from actors import protocol
from actors.protocol import PROTOCOL_CHANGES, PROTOCOL_VERSION, Frame, Generate, Open, Sampling
from tools import protocol_docs


def test_the_messages_change_only_with_a_new_version() -> None:
    recorded = protocol_docs.recorded_hashes()[str(PROTOCOL_VERSION)]
    assert protocol_docs.schema_hash() == recorded, (
        "raise PROTOCOL_VERSION, add a line to PROTOCOL_CHANGES, run tools/protocol_docs.py --record"
    )


def test_every_version_has_a_line_that_says_what_changed() -> None:
    assert sorted(PROTOCOL_CHANGES) == list(range(1, PROTOCOL_VERSION + 1))


def test_the_published_documentation_is_what_the_messages_say() -> None:
    assert protocol_docs.DOCS.read_text() == protocol_docs.render(), "run tools/protocol_docs.py"


def test_a_description_is_no_change_of_a_message() -> None:
    assert "description" not in str(protocol_docs._undescribed({"a": {"description": "x", "type": "y"}}))


def test_every_message_is_documented() -> None:
    text = protocol_docs.render()
    messages = [
        name for name, kind in vars(protocol).items() if isinstance(kind, type) and kind is not protocol.Msg
    ]
    structs = [name for name in messages if issubclass(getattr(protocol, name), protocol.Msg)]
    assert [name for name in structs if f"### {name}\n" not in text] == []


def test_a_field_of_the_wrong_type_is_named() -> None:
    opening = Open(stream=1, credit=1, body=Generate(prompt="x", sampling=Sampling()))
    data = msgspec.to_builtins(opening)
    data["body"]["n_predict"] = "many"
    with pytest.raises(msgspec.ValidationError, match=r"\$\.body\.n_predict"):
        msgspec.msgpack.decode(msgspec.msgpack.encode(data), type=Frame)
