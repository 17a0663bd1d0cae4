"""Reading Ollama's requests: fields, options, durations, thinking, hosts and origins.  No sockets."""

import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.errors import CapacityError, ModelNotFound, QueueFull, RequestError
from actors.gateway.dialect import NATIVE, OPENAI
from actors.gateway.fields import MAX_DEPTH, Fields, decode_json, read_fields
from actors.gateway.guard import HostRule, OriginRule
from actors.gateway.options import read_keep_alive, read_options
from actors.gateway.requests import read_chat, read_generate
from actors.gateway.thinking import ThinkingSplitter

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def fields(**values: object) -> Fields:
    return read_fields(json.dumps(values).encode(), "GenerateRequest")


@given(JSON)
def test_what_json_encodes_is_decoded_alike(value: object) -> None:
    assert decode_json(json.dumps(value, ensure_ascii=False).encode()) == value


@given(st.binary(max_size=200))
def test_any_bytes_are_json_or_a_request_error(body: bytes) -> None:
    try:
        value = decode_json(body)
    except RequestError:
        return
    json.dumps(value).encode()


@pytest.mark.parametrize(
    "body",
    [
        b"NaN",
        b"[Infinity]",
        b"1" * 5000,
        b"[" * 10**6,
        b'{"a":' * 1000 + b"1" + b"}" * 1000,
        b'"\xff',
        b"[1,",
    ],
)
def test_bodies_that_are_no_json_here_are_refused(body: bytes) -> None:
    with pytest.raises(RequestError):
        decode_json(body)


def test_the_deepest_body_that_is_taken_has_max_depth_levels() -> None:
    decode_json(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    with pytest.raises(RequestError, match="deeper"):
        decode_json(b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1))


def test_lone_surrogates_and_bad_bytes_become_replacement_characters() -> None:
    assert decode_json(rb'{"\ud800": "a\udfff\ud83d\ude00"}') == {"�": "a�\U0001f600"}
    assert decode_json(b'"\xff"') == "�"


def test_what_follows_the_first_value_is_ignored() -> None:
    assert decode_json(b' {"a": 1} {"b"') == {"a": 1}


def test_field_names_match_whatever_their_case_and_unknown_ones_are_ignored() -> None:
    assert read_generate(fields(MODEL="m", Prompt="p", unknown=[1])).prompt == "p"


def test_null_means_absent() -> None:
    asked = read_generate(
        fields(model="m", stream=None, options=None, keep_alive=None, think=None, images=None)
    )
    assert (asked.is_stream, asked.options, asked.keep_alive_s, asked.think) == (True, {}, None, None)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (
            {"prompt": 1},
            "number into Go struct field GenerateRequest.prompt of type string",
        ),
        (
            {"stream": "no"},
            "string into Go struct field GenerateRequest.stream of type bool",
        ),
        (
            {"options": []},
            "array into Go struct field GenerateRequest.options of type map",
        ),
        (
            {"context": ["a"]},
            "string into Go struct field GenerateRequest.context of type int",
        ),
        (
            {"keep_alive": True},
            "bool into Go struct field GenerateRequest.keep_alive of type",
        ),
        ({"think": "much"}, "invalid think value: 'much'"),
        ({"format": "xml"}, "invalid format: 'xml'"),
        ({"top_logprobs": -1}, "top_logprobs must be between 0 and 20"),
    ],
)
def test_wrong_types_are_told_in_the_decoders_words(values: dict[str, object], text: str) -> None:
    with pytest.raises(RequestError) as caught:
        read_generate(fields(model="m", **values))
    assert caught.value.message.removeprefix("json: cannot unmarshal ").startswith(text)


def test_messages_keep_what_templates_need() -> None:
    call = {"id": "c1", "function": {"index": 0, "name": "f", "arguments": {"b": 1, "a": [2]}}}
    messages = [
        {"role": "Assistant", "content": "", "thinking": "hm", "tool_calls": [call]},
        {"role": "tool", "content": "3", "tool_name": "f", "tool_call_id": "c1"},
    ]
    assert read_chat(fields(model="m", messages=messages)).messages == (
        {
            "role": "assistant",
            "content": "",
            "thinking": "hm",
            "tool_calls": [{"function": {"name": "f", "arguments": {"b": 1, "a": [2]}}, "id": "c1"}],
        },
        {"role": "tool", "content": "3", "tool_name": "f", "tool_call_id": "c1"},
    )


def test_defaults_of_options_are_ollamas() -> None:
    options = read_options({}, {})
    sampling = options.sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) == (0.8, 40, 0.9, 0.0)
    assert (sampling.typical_p, sampling.repeat_last_n, sampling.repeat_penalty) == (1.0, 64, 1.0)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.0, 0.0)
    assert (options.n_predict, options.n_keep, options.stop) == (-1, 4, ())
    assert (options.load.n_ctx, options.load.n_batch, options.load.n_gpu, options.load.n_thread) == (
        0,
        0,
        -1,
        0,
    )


def test_whole_numbers_may_come_as_floats() -> None:
    options = read_options({"top_k": 5.0, "num_predict": 7.9, "temperature": 1}, {})
    assert (options.sampling.top_k, options.n_predict, options.sampling.temperature) == (5, 7, 1.0)


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("temperature", "hot", "float32"),
        ("temperature", True, "float32"),
        ("num_ctx", "many", "integer"),
        ("num_ctx", 1e300, "integer"),
        ("use_mmap", 1, "boolean"),
        ("stop", 5, "array of strings"),
        ("stop", [5], "array of strings"),
    ],
)
def test_options_of_the_wrong_type_are_refused_by_name(name: str, value: object, kind: str) -> None:
    with pytest.raises(RequestError) as caught:
        read_options({name: value}, {})
    assert caught.value.message == f'option "{name}" must be of type {kind}'


@pytest.mark.parametrize("name", ["num_ctx", "num_batch", "num_thread", "num_parallel"])
def test_sizes_must_not_be_negative(name: str) -> None:
    with pytest.raises(RequestError, match=name):
        read_options({name: -1}, {})


@pytest.mark.parametrize("name", ["mirostat", "low_vram", "no_such_option", "use_mmap"])
def test_options_without_effect_are_logged(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        read_options({name: True}, {})
    assert name in caplog.text


def test_empty_stop_strings_stop_nothing() -> None:
    assert read_options({"stop": ["", "a"]}, {}).stop == ("a",)


@given(st.integers(-(2**62), 2**62) | st.floats(-1e15, 1e15))
def test_seeds_are_definite_and_kept_when_given(seed: float) -> None:
    found = read_options({"seed": seed}, {}).sampling.seed
    assert found == int(seed) if int(seed) >= 0 else 0 <= found < 2**63


@pytest.mark.parametrize("value", ["", "soon", "5 m", "1e400", float("1e300"), 10**400, [], {}])
def test_keep_alive_that_is_no_time_is_refused(value: object) -> None:
    with pytest.raises(RequestError):
        read_keep_alive(fields(keep_alive=value))


@given(
    st.lists(st.sampled_from(["<think>", "</think>", "<", "th", "ink>", "a", " ", "\n", "</"]), max_size=12),
    st.data(),
)
def test_thinking_is_split_alike_however_the_text_is_cut(parts: list[str], data: st.DataObject) -> None:
    text = "".join(parts)
    n_cuts = data.draw(st.integers(0, 5))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), min_size=n_cuts, max_size=n_cuts)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert split(pieces) == split([text])


@pytest.mark.parametrize(
    ("text", "is_open", "thinking", "content"),
    [
        ("<think>\nhm\n</think>\n\nyes", False, "hm", "yes"),
        ("hm</think>yes", True, "hm", "yes"),
        ("  <think>a < b</think> c", False, "a < b", "c"),
        ("  yes <think>", False, "", "  yes <think>"),
        ("<think></think>", False, "", ""),
        ("<thi", False, "", "<thi"),
        ("<think>hm </thi", False, "hm </thi", ""),
        ("hm", True, "hm", ""),
        ("hm</think>a</think>b", True, "hm", "a</think>b"),
    ],
)
def test_thinking_is_told_from_the_answer(text: str, is_open: bool, thinking: str, content: str) -> None:
    assert split([text], is_open=is_open) == (thinking, content)


def split(pieces: list[str], *, is_open: bool = False) -> tuple[str, str]:
    splitter = ThinkingSplitter(is_open=is_open)
    parts = [*map(splitter.push, pieces), splitter.flush()]
    return "".join(part.thinking for part in parts), "".join(part.content for part in parts)


def test_a_server_on_every_interface_answers_to_any_name() -> None:
    assert HostRule("0.0.0.0").allows("example.com")
    assert not HostRule("127.0.0.1").allows("example.com")


@pytest.mark.parametrize(
    "host", ["", "LOCALHOST:1", "a.localhost", "x.internal.", "[::1]:5", "10.1.1.2:80", "0.0.0.0"]
)
def test_names_of_this_machine_are_allowed(host: str) -> None:
    assert HostRule("::1").allows(host)


@pytest.mark.parametrize(
    "host", ["localhost.evil.com", "1.1.1.1", "local", "[2606:4700::1111]", "evil.com:localhost"]
)
def test_names_of_others_are_not(host: str) -> None:
    assert not HostRule("127.0.0.1").allows(host)


def test_a_page_of_our_own_host_and_wildcards_are_allowed() -> None:
    rule = OriginRule(("https://*.my.site", "http://one:80"))
    assert rule.allows("http://box.local:1", "box.local:1")
    assert rule.allows("https://a.my.site", "x")
    assert rule.allows("http://one:80", "x")
    assert not rule.allows("https://my.site", "x")
    assert not rule.allows("null", "x")
    assert OriginRule(("*",)).allows("https://any.where", "x")


def test_errors_have_each_apis_shape_and_exact_texts() -> None:
    full = QueueFull("600 wait", mend="wait")
    assert NATIVE.error(full) == {
        "error": "server busy, please try again.  maximum pending requests exceeded"
    }
    assert NATIVE.error(ModelNotFound("model 'x' not found", mend="look")) == {"error": "model 'x' not found"}
    assert NATIVE.error(CapacityError("too big", mend="shrink")) == {"error": "too big; shrink"}
    assert OPENAI.error(RequestError("no")) == {
        "error": {"message": "no", "type": "invalid_request_error", "param": None, "code": None}
    }


def test_streams_are_framed_by_line_and_by_event() -> None:
    assert NATIVE.frame({"a": "x\ny"}) == b'{"a":"x\\ny"}\n'
    assert OPENAI.frame({"a": 1}) == b'data: {"a":1}\n\n'
