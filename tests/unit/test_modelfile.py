"""Modelfiles: every instruction, every way to quote, and errors that name the line."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.errors import ModelError, RequestError, Unsupported
from actors.modelfile import Modelfile, decode_modelfile, is_go_template, parse_modelfile, write_modelfile
from actors.options import OptionValue

TEXT = '''\
# a comment
FROM ./model.gguf

parameter temperature 0.2
PARAMETER stop "<|im_end|>"
Parameter stop <|eot|>
PARAMETER num_ctx 4096
SYSTEM """You are terse.
  # not a comment
Always."""
TEMPLATE "{% for m in messages %}{{ m.content }}{% endfor %}"
MESSAGE user Hello there
MESSAGE assistant """Hi
you"""
LICENSE "MIT"
LICENSE two
'''


def test_every_instruction_is_read() -> None:
    assert parse_modelfile(TEXT) == Modelfile(
        base="./model.gguf",
        template="{% for m in messages %}{{ m.content }}{% endfor %}",
        system="You are terse.\n  # not a comment\nAlways.",
        license=("MIT", "two"),
        parameters={"temperature": 0.2, "stop": ["<|im_end|>", "<|eot|>"], "num_ctx": 4096},
        messages=(("user", "Hello there"), ("assistant", "Hi\nyou")),
    )


@pytest.mark.parametrize(
    ("line", "system"),
    [
        ("SYSTEM plain  ", "plain"),
        ("SYSTEM\tplain", "plain"),
        ('SYSTEM "  kept  "', "  kept  "),
        ('SYSTEM "a "quoted" word"', 'a "quoted" word'),
        ('SYSTEM "over\ntwo lines"', "over\ntwo lines"),
        ('SYSTEM """"quoted" at the start"""', '"quoted" at the start'),
        ('SYSTEM """"""', ""),
        ('SYSTEM ""', ""),
        ('SYSTEM say "hi"', 'say "hi"'),
        ("SYSTEM a # b", "a # b"),
    ],
)
def test_values_are_unquoted(line: str, system: str) -> None:
    assert parse_modelfile(f"FROM x\n{line}\n").system == system


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("SYSTEM x", RequestError, "no FROM"),
        ("FROM", RequestError, "no FROM"),
        ("FROM a\nFROM b", Unsupported, "line 2: a second FROM"),
        ("FROM a\nADAPTER x", Unsupported, "line 2: ADAPTER"),
        ("FROM a\n\nRENDERER x", Unsupported, "line 3: RENDERER"),
        ("FROM a\nNONSENSE x", RequestError, "line 2: unknown instruction 'NONSENSE'"),
        (
            "FROM a\nPARAMETER temperature hot",
            RequestError,
            'line 2: option "temperature" must be of type float32',
        ),
        ("FROM a\nPARAMETER temperature nan", RequestError, "line 2"),
        ("FROM a\nPARAMETER nope 1", RequestError, "line 2: unknown parameter 'nope'"),
        ("FROM a\nPARAMETER seed", RequestError, "line 2: PARAMETER takes a name and a value"),
        ("FROM a\nMESSAGE robot hi", RequestError, "line 2: 'robot' is no role"),
        ("FROM a\nMESSAGE user", RequestError, "line 2: MESSAGE takes"),
        ('FROM a\nSYSTEM """x\ny', RequestError, 'line 2: the opening """ is never closed'),
        ('FROM a\nSYSTEM """x""" y', RequestError, "line 2: 'y' after the closing quotes"),
        ('FROM a\nTEMPLATE """{{ if .System }}x{{ end }}"""', Unsupported, "line 2: TEMPLATE is in Go's"),
    ],
)
def test_errors_name_the_line(text: str, error: type[ModelError], message: str) -> None:
    with pytest.raises(error) as caught:
        parse_modelfile(text)
    assert message in caught.value.message


def test_retired_parameters_warn() -> None:
    parsed = parse_modelfile("FROM a\nPARAMETER mirostat 1\n")
    assert parsed.parameters == {}
    assert parsed.warnings == ("line 2: parameter 'mirostat' has no effect any more",)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
def test_byte_order_marks_are_accepted(encoding: str) -> None:
    data = "FROM näme".encode(encoding)
    if encoding == "utf-16-le":
        data = b"\xff\xfe" + data
    assert decode_modelfile(data) == "FROM näme"


def test_what_is_not_text_is_refused() -> None:
    with pytest.raises(RequestError, match="UTF-8"):
        decode_modelfile(b"FROM \xff\xff")


@pytest.mark.parametrize(
    ("text", "is_go"),
    [
        ("{{ .Prompt }}", True),
        ("{{- if .System }}x{{ end }}", True),
        ("{{ range $i, $m := .Messages }}{{ end }}", True),
        ("{{/* c */}}", True),
        ("{{ messages[0].content }}", False),
        ("{% if x %}{{ '{{ .x }}' }}{% endif %}", False),
        ("{{ ifelse }}", False),
        ("plain", False),
    ],
)
def test_go_templates_are_told_from_jinja(text: str, is_go: bool) -> None:
    assert is_go_template(text) is is_go


texts = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\r"), max_size=60).filter(
    lambda text: '"""' not in text and not text.endswith('"')
)
lines = st.from_regex(r"[a-z<|>_.]{1,20}", fullmatch=True)


@given(
    base=lines,
    system=st.none() | texts,
    license_texts=st.lists(texts, max_size=2),
    stop=st.lists(texts, max_size=2),
    temperature=st.floats(0, 2, width=16),
    messages=st.lists(st.tuples(st.sampled_from(["user", "assistant"]), texts), max_size=2),
)
def test_what_is_written_reads_back(
    base: str,
    system: str | None,
    license_texts: list[str],
    stop: list[str],
    temperature: float,
    messages: list[tuple[str, str]],
) -> None:
    parameters: dict[str, OptionValue] = {"temperature": temperature}
    if stop:
        parameters["stop"] = stop
    model = Modelfile(base, None, system, tuple(license_texts), parameters, tuple(messages))
    assert parse_modelfile(write_modelfile(model, ["comment"])) == model


@given(st.text(max_size=200))
def test_no_text_makes_the_parser_fail_otherwise_than_by_name(text: str) -> None:
    with suppress(RequestError, Unsupported):
        parse_modelfile("FROM x\n" + text)
