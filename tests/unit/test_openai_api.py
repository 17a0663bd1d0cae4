"""Reading OpenAI's requests.  No sockets."""

import json

import pytest

from actors.errors import RequestError
from actors.gateway.fields import Fields, read_fields
from actors.gateway.openai_requests import read_chat_completion, read_completion
from actors.gateway.openai_shapes import new_id, text_logprobs
from actors.protocol import Logprob, TokenLogprob

HELLO = [{"role": "user", "content": "hi"}]


def fields(**values: object) -> Fields:
    return read_fields(json.dumps(values).encode(), "ChatCompletionRequest", empty_text="EOF")


def test_streams_are_off_by_default() -> None:
    wanted, asked = read_chat_completion(fields(model="m", messages=HELLO))
    assert (wanted.is_stream, wanted.has_usage, asked.n_logprobs, asked.think) == (False, False, -1, None)


def test_absent_parameters_leave_the_models_own_in_force() -> None:
    _, asked = read_chat_completion(fields(model="m", messages=HELLO))
    assert set(asked.options.values()) == {None}


@pytest.mark.parametrize(
    ("effort", "think"),
    [
        ("none", False),
        ("minimal", "low"),
        ("low", "low"),
        ("medium", "medium"),
        ("high", "high"),
        ("xhigh", "max"),
    ],
)
def test_efforts_are_levels_of_thinking(effort: str, think: object) -> None:
    assert read_chat_completion(fields(model="m", messages=HELLO, reasoning_effort=effort))[1].think == think
    nested = fields(model="m", messages=HELLO, reasoning={"effort": effort})
    assert read_chat_completion(nested)[1].think == think


@pytest.mark.parametrize(("given", "read"), [(True, True), (False, False), (None, None)])
def test_the_end_of_text_can_be_ignored(given: object, read: object) -> None:
    assert (
        read_chat_completion(fields(model="m", messages=HELLO, ignore_eos=given))[1].options["ignore_eos"]
        is read
    )


@pytest.mark.parametrize(
    "change",
    [
        {"n": 1},
        {"logit_bias": {}},
        {"response_format": {"type": "text"}},
        {"tool_choice": "none", "tools": [{}]},
        {
            "user": "u",
            "metadata": {"a": "b"},
            "store": True,
            "parallel_tool_calls": True,
            "service_tier": "auto",
        },
        {"modalities": ["text"]},
        {"max_tokens": -1},  # without limit, as many local servers have it
    ],
)
def test_what_changes_nothing_is_accepted(change: dict[str, object]) -> None:
    _, asked = read_chat_completion(fields(model="m", messages=HELLO, **change))
    assert asked.tools == ()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"n": 3}, "n"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"function_call": "auto"}, "function_call"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -2}, "max_tokens"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"reasoning_effort": "extreme"}, "reasoning"),
        ({"messages": [{"role": "user", "content": 5}]}, "content"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "input_audio"),
        ({"messages": "hi"}, "messages"),
        ({"stop": [1]}, "stop"),
    ],
)
def test_what_would_change_the_answer_is_refused_by_name(change: dict[str, object], named: str) -> None:
    with pytest.raises(RequestError) as caught:
        read_chat_completion(fields(**{"model": "m", "messages": HELLO, **change}))
    assert named in caught.value.message


@pytest.mark.parametrize(
    ("prompt", "text", "tokens"),
    [("a", "a", ()), (["a"], "a", ()), ([1, 2], "", (1, 2)), ([[3]], "", (3,)), (None, "", ())],
)
def test_a_prompt_is_a_text_or_a_list_of_tokens(prompt: object, text: str, tokens: tuple[int, ...]) -> None:
    _, asked = read_completion(fields(model="m", prompt=prompt))
    assert (asked.prompt, asked.context, asked.is_raw) == (text, tokens, bool(tokens))


@pytest.mark.parametrize("prompt", [["a", "b"], [[1], [2]], [], [-1], [2**31], [1, "a"], {"a": 1}])
def test_other_prompts_are_refused(prompt: object) -> None:
    with pytest.raises(RequestError):
        read_completion(fields(model="m", prompt=prompt))


def test_legacy_logprobs_is_a_number_of_candidates() -> None:
    assert read_completion(fields(model="m", prompt="a", logprobs=3))[1].n_logprobs == 3
    assert read_completion(fields(model="m", prompt="a", logprobs=0))[1].n_logprobs == 0
    assert read_completion(fields(model="m", prompt="a"))[1].n_logprobs == -1


def test_ids_do_not_collide() -> None:
    assert len({new_id("chatcmpl") for _ in range(10_000)}) == 10_000


def test_text_offsets_go_on_from_chunk_to_chunk() -> None:
    entries = [Logprob(TokenLogprob(1, piece, -1.0)) for piece in (b"ab", b"\xff", b"c")]
    shape = text_logprobs(entries, 10)
    assert shape is not None
    assert shape.text_offset == (10, 12, 13)
