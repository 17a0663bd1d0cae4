"""Model names: what is one, what it means, and that no name can leave the folder of manifests."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.errors import RequestError
from actors.gateway.library.digest import parse_digest
from actors.gateway.library.names import parse_name

part = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,20}", fullmatch=True)


@pytest.mark.parametrize(
    ("text", "full", "display"),
    [
        ("llama3", "registry.ollama.ai/library/llama3:latest", "llama3:latest"),
        ("llama3.2:1b", "registry.ollama.ai/library/llama3.2:1b", "llama3.2:1b"),
        ("jo/llama3", "registry.ollama.ai/jo/llama3:latest", "jo/llama3:latest"),
        ("hf.co/jo/llama3:Q4_K_M", "hf.co/jo/llama3:Q4_K_M", "hf.co/jo/llama3:Q4_K_M"),
        ("localhost:5000/jo/x:1", "localhost:5000/jo/x:1", "localhost:5000/jo/x:1"),
        ("localhost:5000/jo/x", "localhost:5000/jo/x:latest", "localhost:5000/jo/x:latest"),
        ("https://hf.co/jo/x", "hf.co/jo/x:latest", "hf.co/jo/x:latest"),
        ("REGISTRY.ollama.ai/Library/x", "REGISTRY.ollama.ai/Library/x:latest", "x:latest"),
    ],
)
def test_a_name_is_filled_with_defaults_and_shown_short(text: str, full: str, display: str) -> None:
    name = parse_name(text)
    assert (name.full, name.display) == (full, display)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "x:",
        "/x",
        "a//x",
        "a/b/c/d",
        "..",
        "../x",
        "x/..",
        "a/../x",
        "x:..",
        ".hidden",
        "x:.t",
        "-x",
        "x y",
        "x\0",
        "x\n",
        "jo.e/x",
        "x@sha256:00",
        "x:a:b/c",
        "ns/x:a/b",
        "é",
        "x" * 81,
        "x:" + "t" * 81,
        "n" * 81 + "/x",
        "h" * 351 + "/n/x",
        "\\x",
        "x\\..\\y",
        "%2e%2e/x",
    ],
)
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="invalid model name"):
        parse_name(text)


@given(st.text(max_size=60) | st.from_regex(r"[a-z./:_\\-]{0,30}", fullmatch=True))
def test_no_name_leads_out_of_the_manifests_folder(text: str) -> None:
    root = Path("/models/manifests")
    try:
        path = parse_name(text).manifest_path(root)
    except RequestError:
        return
    assert path.parts[: len(root.parts)] == root.parts
    assert len(path.parts) == len(root.parts) + 4
    assert ".." not in path.parts


@given(host=part, namespace=part, model=part, tag=part)
def test_every_name_reads_back_from_its_full_and_its_short_form(
    host: str, namespace: str, model: str, tag: str
) -> None:
    name = parse_name(f"{host}/{namespace}/{model}:{tag}")
    assert parse_name(name.full) == name
    assert parse_name(name.display).key == name.key


def test_names_that_differ_in_case_have_one_key() -> None:
    assert parse_name("Jo/Llama:Q4").key == parse_name("jo/llama:q4").key


@pytest.mark.parametrize("sign", [":", "-"])
def test_a_digest_reads_with_either_sign(sign: str) -> None:
    assert str(parse_digest(f"sha256{sign}{'AB' * 32}")) == f"sha256:{'ab' * 32}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256:",
        "sha256:../../etc/passwd",
        "sha256:" + "0" * 63,
        "sha256:" + "0" * 65,
        "sha256:" + "g" * 64,
        "md5:" + "0" * 64,
        "sha256:" + "0" * 64 + "\n",
        "sha256:" + "0" * 62 + "/x",
        "0" * 64,
    ],
)
def test_what_is_no_digest_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="invalid digest"):
        parse_digest(text)
