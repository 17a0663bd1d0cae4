"""Chat templates: the dialects of models in use, written from their formats, and hostile ones."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio
import trio.testing

from actors.errors import RequestError, Unsupported
from actors.gateway.library.digest import digest_bytes
from actors.gateway.library.entry import Contents, Entry
from actors.gateway.library.manifest import Config, Layer, Manifest, Message
from actors.gateway.library.names import parse_name
from actors.gateway.templates.chat import ChatRenderer
from actors.gateway.templates.jobs import Job
from actors.gateway.templates.language import MAX_TEMPLATE_CHARS
from actors.gateway.templates.sandbox import make_environment
from actors.gateway.templates.worker import render
from actors.protocol import ModelInfo

TEMPLATES = Path(__file__).parent / "chat_templates"
CHATML, LLAMA3, MISTRAL, PHI3, GEMMA3 = (
    (TEMPLATES / f"{name}.jinja").read_text() for name in ("chatml", "llama3", "mistral", "phi3", "gemma3")
)

USER: dict[str, object] = {"role": "user", "content": "Hi <b> & é"}
WEATHER: dict[str, object] = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"z": 1, "a": "<é>"}},
}


def model(
    *, template: str | None = None, system: str = "", messages: Sequence[tuple[str, str]] = ()
) -> Entry:
    contents = Contents(
        digest=digest_bytes(b""),
        size_bytes=0,
        config=Config(),
        manifest=Manifest(Layer("", "", 0), ()),
        data=b"",
        gguf=Path("/m.gguf"),
        gguf_digest=digest_bytes(b""),
        gguf_bytes=0,
        template=template,
        system=system,
        params={},
        messages=tuple(Message(*message) for message in messages),
        license=(),
    )

    async def inspect(_entry: Entry) -> ModelInfo:
        raise AssertionError("not used here")

    return Entry(parse_name("m"), datetime.now(UTC), contents, inspect)


def info(template: str | None, **metadata: bool | str) -> ModelInfo:
    keys = {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}
    return ModelInfo("llama", {**keys}, (), 1, "F16", chat_template=template, bos_text="<s>", eos_text="</s>")


@asynccontextmanager
async def renderer(limit_s: float = 20.0) -> AsyncGenerator[ChatRenderer]:
    made = ChatRenderer(limit_s)
    async with trio.open_nursery() as nursery:
        await nursery.start(made.run)
        yield made
        nursery.cancel_scope.cancel()


async def chat(
    template: str,
    *messages: dict[str, object],
    tools: Sequence[dict[str, object]] | None = None,
    think: bool | str | None = None,
) -> str:
    outcome: str | RequestError = ""
    with trio.fail_after(60):
        async with renderer() as made:
            try:
                outcome = await made.render_chat(model(), info(template), messages, tools=tools, think=think)
            except RequestError as fault:  # taken out of the nursery's group
                outcome = fault
    if isinstance(outcome, RequestError):
        raise outcome
    return outcome


async def test_chatml() -> None:
    text = await chat(CHATML, {"role": "System", "content": "Be."}, USER)
    assert text == (
        "<|im_start|>system\nBe.<|im_end|>\n<|im_start|>user\nHi <b> & é<|im_end|>\n<|im_start|>assistant\n"
    )


async def test_chatml_declares_tools_as_they_were_written() -> None:
    text = await chat(CHATML, USER, tools=[WEATHER])
    tool = '{"type": "function", "function": {"name": "weather", "parameters": {"z": 1, "a": "<é>"}}}'
    assert f"# Tools\n<tools>\n{tool}\n</tools><|im_end|>\n" in text


async def test_chatml_writes_calls_and_their_answers() -> None:
    call = {"function": {"index": 0, "name": "weather", "arguments": {"city": "Graz", "at": 7}}}
    text = await chat(
        CHATML,
        USER,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "sunny", "tool_name": "weather"},
    )
    assert text.endswith(
        '<|im_start|>assistant\n<tool_call>\n{"name": "weather", "arguments": {"city": "Graz", "at": 7}}\n'
        "</tool_call><|im_end|>\n<|im_start|>user\n<tool_response>\nsunny\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(("think", "n_closed"), [(None, 0), (True, 0), ("high", 0), (False, 1)])
async def test_thinking_is_switched_by_the_templates_own_name(
    think: bool | str | None, n_closed: int
) -> None:
    assert (await chat(CHATML, USER, think=think)).count("</think>") == n_closed


async def test_llama3() -> None:
    text = await chat(LLAMA3, USER, tools=[WEATHER])
    assert text == (
        "<s><|start_header_id|>system<|end_header_id|>\n\nEnvironment: ipython\n<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi <b> & é<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


async def test_mistral_with_its_system_text_and_a_second_turn() -> None:
    text = await chat(
        MISTRAL,
        {"role": "system", "content": "Be."},
        USER,
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "More"},
    )
    assert text == "<s>[INST] Be.\n\nHi <b> & é [/INST] Yes.</s>[INST] More [/INST]"


async def test_gemma3_with_its_system_text_in_the_first_turn() -> None:
    text = await chat(
        GEMMA3,
        {"role": "system", "content": "Be."},
        USER,
        {"role": "assistant", "content": " Yes. "},
        {"role": "user", "content": "More"},
    )
    assert text == (
        "<s><start_of_turn>user\nBe.\n\nHi <b> & é<end_of_turn>\n<start_of_turn>model\nYes.<end_of_turn>\n"
        "<start_of_turn>user\nMore<end_of_turn>\n<start_of_turn>model\n"
    )


async def test_a_template_that_refuses_gives_its_reason() -> None:
    with pytest.raises(RequestError, match="roles must alternate") as caught:
        await chat(MISTRAL, USER, USER)
    assert caught.value.http_status == 400


async def test_phi3() -> None:
    assert await chat(PHI3, USER) == "<|user|>\nHi <b> & é<|end|>\n<|assistant|>\n"


async def test_an_answer_that_was_begun_is_left_open() -> None:
    text = await chat(PHI3, USER, {"role": "assistant", "content": "It is "})
    assert text == "<|user|>\nHi <b> & é<|end|>\n<|assistant|>\nIt is "


async def test_the_models_own_turns_come_first() -> None:
    entry = model(system="Sys.", messages=[("user", "a"), ("assistant", "b")])
    async with renderer() as made:
        text = await made.render_chat(entry, info(PHI3), [{"role": "user", "content": "c"}])
        own = await made.render_chat(entry, info(PHI3), [{"role": "user", "content": "c"}], system="Other.")
        given = await made.render_chat(
            entry, info(PHI3), [{"role": "system", "content": "Mine."}, {"role": "user", "content": "c"}]
        )
    turns = "<|user|>\na<|end|>\n<|assistant|>\nb<|end|>\n<|user|>\nc<|end|>\n<|assistant|>\n"
    assert [text, own, given] == [
        f"<|system|>\n{head}<|end|>\n{turns}" for head in ("Sys.", "Other.", "Mine.")
    ]


async def test_a_prompt_is_one_turn_of_the_user() -> None:
    entry = model(system="Sys.", messages=[("user", "a"), ("assistant", "b")])
    async with renderer() as made:
        text = await made.render_prompt(entry, info(PHI3), "c", use_messages=False)
    assert text == "<|system|>\nSys.<|end|>\n<|user|>\nc<|end|>\n<|assistant|>\n"


async def test_a_prompt_for_a_model_without_any_template_stays_as_it_is() -> None:
    async with renderer() as made:
        assert await made.render_prompt(model(), info(None), "Once upon") == "Once upon"


async def test_a_chat_with_a_model_without_any_template_is_refused() -> None:
    async with renderer() as made:
        with pytest.raises(RequestError, match="no chat template") as caught:
            await made.render_chat(model(), info(None), [USER])
    assert "api/generate" in caught.value.mend


async def test_the_files_template_goes_before_a_go_template() -> None:
    async with renderer() as made:
        text = await made.render_chat(model(template="{{ .Prompt }}"), info(PHI3), [USER])
    assert text.startswith("<|user|>")


async def test_a_model_with_only_a_go_template_is_refused_with_how_to_mend() -> None:
    async with renderer() as made:
        with pytest.raises(Unsupported, match="Go template") as caught:
            await made.render_chat(model(template="{{ .Prompt }}"), info(None), [USER])
    assert "TEMPLATE" in caught.value.mend


async def test_the_models_jinja_template_and_the_requests_go_before_the_files() -> None:
    async with renderer() as made:
        own = await made.render_chat(model(template="own {{ eos_token }}"), info(PHI3), [USER])
        asked = await made.render_chat(model(template="own"), info(PHI3), [USER], template="asked")
    assert (own, asked) == ("own </s>", "asked")


async def test_a_suffix_needs_a_template_that_knows_it() -> None:
    async with renderer() as made:
        text = await made.render_prompt(model(), info("<P>{{ prompt }}<S>{{ suffix }}<M>"), "a", suffix="b")
        with pytest.raises(RequestError, match="does not support insert"):
            await made.render_prompt(model(), info(PHI3), "a", suffix="b")
    assert text == "<P>a<S>b<M>"


@pytest.mark.parametrize(
    ("metadata", "text"),
    [
        ({"model": "llama"}, "x"),
        ({"model": "gpt2"}, "<s>x"),
        ({"add_bos_token": True}, "x"),
        ({"model": "llama", "add_bos_token": False}, "<s>x"),
    ],
)
async def test_a_bos_that_the_tokenizer_adds_is_not_written_twice(
    metadata: dict[str, str], text: str
) -> None:
    async with renderer() as made:
        assert await made.render_chat(model(), info("{{ bos_token }}x", **metadata), [USER]) == text


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{{ 10 ** (10 ** 8) % 3 }}",
    ],
)
async def test_a_template_that_does_not_end_fails_its_request_and_the_next_one_works(template: str) -> None:
    with trio.fail_after(60):
        async with renderer(limit_s=0.5) as made:
            with pytest.raises(RequestError, match=r"did not end within|memory"):
                await made.render_chat(model(), info(template), [USER])
        async with renderer() as made:
            assert await made.render_chat(model(), info(PHI3), [USER])


async def test_a_stuck_template_does_not_hold_up_others() -> None:
    stuck = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    done: list[str] = []

    async def hang(made: ChatRenderer) -> None:
        with pytest.raises(RequestError):
            await made.render_chat(model(), info(stuck), [USER])
        done.append("stuck")

    with trio.fail_after(60):
        async with renderer(limit_s=8.0) as made, trio.open_nursery() as nursery:
            nursery.start_soon(hang, made)
            await trio.testing.wait_all_tasks_blocked()
            await made.render_chat(model(), info(PHI3), [USER])
            done.append("other")
            nursery.cancel_scope.cancel()
    assert done == ["other"]


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'x' * 10 ** 10 }}",
        "{% set n = namespace(s='xxxx') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
        "{% for i in range(99999) %}{{ 'x' * 9999 }}{% endfor %}",
        "{{ '%9999999999d' % 1 }}",
    ],
)
async def test_a_template_that_asks_for_all_memory_fails_its_request(template: str) -> None:
    with pytest.raises(RequestError, match="the chat template failed"):
        await chat(template, USER)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__ }}",
        "{{ messages.__class__.__mro__ }}",
        "{{ ''['__class__']['__mro__'] }}",
        "{{ (messages | attr('__class__')).__init__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
        "{{ self.__init__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(a=1) }}",
        "{{ lipsum() }}",
        "{% include 'x' %}",
        "{% import 'os' as os %}",
        "{{ range(10 ** 9) }}",
        "{{ nothing.there }}",
        "{{ 1 / 0 }}",
        "{% for %}",
        "{{ x | nofilter }}",
        "{" * 3 + "%" * 40,
        "{{ " + "(" * 5000 + ")" * 5000 + " }}",
    ],
)
def test_the_sandbox_gives_nothing_away(template: str) -> None:
    outcome = render(Job(template, {"messages": [{"role": "user"}]}))
    assert (
        outcome.error or outcome.text == ""
    )  # an attribute that is refused is undefined, and prints as nothing


def test_json_is_written_as_models_know_it() -> None:
    environment = make_environment()
    assert environment.from_string("{{ {'b': '<é>', 'a': [1, none]} | tojson }}").render() == (
        '{"b": "<é>", "a": [1, null]}'
    )
    assert environment.from_string("{{ {'a': 1} | tojson(indent=2) }}").render() == '{\n  "a": 1\n}'


def test_blocks_take_no_line_of_their_own() -> None:
    text = "a\n  {% if true %}\nb\n  {% endif %}\n"
    assert make_environment().from_string(text).render() == "a\nb\n"


def test_the_date_is_written_as_asked() -> None:
    environment = make_environment(lambda: datetime(2026, 3, 9))  # templates want local time
    assert environment.from_string("{{ strftime_now('%d %b %Y') }}").render() == "09 Mar 2026"


async def test_a_surrogate_in_a_template_costs_no_worker() -> None:
    assert await chat("{% set x = '\\ud800' %}{{ x }}a", USER) == "?a"


@pytest.mark.parametrize("template", [CHATML, LLAMA3, MISTRAL, PHI3, "{{ prompt }}", ""])
async def test_templates_in_use_pass_the_check(template: str) -> None:
    async with renderer() as made:
        await made.check(template)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("x" * (MAX_TEMPLATE_CHARS + 1), "characters"),
        ("a\n{% if %}", "cannot be used: line 2"),
        ("{{ x is nosuch }}", "no test"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "nests"),
    ],
)
async def test_what_is_no_template_fails_the_check(template: str, text: str) -> None:
    refusal = ""
    async with renderer() as made:
        try:
            await made.check(template)
        except RequestError as fault:
            refusal = fault.message
    assert text in refusal
