"""Making models: what is written, what is inherited, what is refused before anything is written."""

import hashlib
import json
from pathlib import Path

import msgspec
import pytest

from actors.errors import ModelError, ModelNotFound, RequestError, Unsupported
from actors.gateway.library.create import human_count
from actors.gateway.library.recipe import Recipe
from actors.gateway.library.show import modelfile_of, parameters_text
from actors.gateway.library.store import Library
from actors.modelfile import parse_modelfile
from tests.unit.test_store import (
    GGUF,
    INFO,
    LIB,
    Inspector,
    Store,
    chunks,
    inspector,
    library,
    served_bytes,
    store,
    with_builtin,
)

__all__ = ["inspector", "library", "store", "with_builtin"]

DIGEST = f"sha256:{hashlib.sha256(GGUF).hexdigest()}"
JINJA = "{% for m in messages %}{{ m.role }}{% endfor %}"


def recipe(**fields: object) -> Recipe:
    return msgspec.convert(fields, Recipe)


def uploaded(**fields: object) -> Recipe:
    return recipe(files={"a.gguf": DIGEST}, **fields)


async def test_a_model_is_made_from_an_uploaded_file(library: Library) -> None:
    await library.upload(DIGEST, chunks(GGUF))
    statuses: list[str] = []

    async def progress(status: str) -> None:
        statuses.append(status)

    entry = await library.create("Mine:v1", uploaded(system="Be kind."), progress)
    assert entry.name.display == "Mine:v1"
    assert entry.system == "Be kind."
    assert entry.config.model_type == "1.2B"
    assert (entry.config.model_family, entry.config.context_length) == ("llama", 8192)
    assert entry.spec().digest == DIGEST
    assert statuses[-2:] == ["writing manifest", "success"]


async def test_a_manifest_has_the_form_that_ollama_reads(store: Store, library: Library) -> None:
    await library.upload(DIGEST, chunks(GGUF))
    await library.create("mine", uploaded(parameters={"temperature": 0.5, "stop": "x"}))
    manifest = json.loads((store.folder / "manifests" / LIB / "mine" / "latest").read_bytes())
    assert manifest["schemaVersion"] == 2
    assert manifest["config"]["mediaType"] == "application/vnd.docker.container.image.v1+json"
    assert manifest["layers"][0] == {
        "mediaType": "application/vnd.ollama.image.model",
        "digest": DIGEST,
        "size": len(GGUF),
    }
    params = (store.folder / "blobs" / manifest["layers"][1]["digest"].replace(":", "-")).read_bytes()
    assert json.loads(params) == {"temperature": 0.5, "stop": ["x"]}


async def test_a_model_is_made_from_a_file_of_this_machine(tmp_path: Path, library: Library) -> None:
    (tmp_path / "m.gguf").write_bytes(GGUF)
    entry = await library.create("mine", Recipe(), file=tmp_path / "m.gguf")
    (tmp_path / "m.gguf").write_bytes(b"changed")
    assert served_bytes(entry) == GGUF


async def test_a_model_from_another_inherits_what_it_does_not_replace(store: Store, library: Library) -> None:
    store.model(
        f"{LIB}/base/latest",
        {
            "model": GGUF,
            "system": b"old",
            "license": b"MIT",
            "params": b'{"top_k": 3, "seed": 1}',
            "template": b"{{ .Prompt }}",
        },
    )
    entry = await library.create(
        "mine", recipe(**{"from": "base"}, system="new", parameters={"seed": 2}, template=JINJA)
    )
    assert (entry.system, entry.license, entry.template) == ("new", ("MIT",), JINJA)
    assert entry.params == {"top_k": 3, "seed": 2}
    assert entry.config == (await library.find("base")).config


async def test_an_empty_system_takes_the_inherited_one_away(store: Store, library: Library) -> None:
    store.model(f"{LIB}/base/latest", {"model": GGUF, "system": b"old"})
    assert (await library.create("mine", recipe(**{"from": "base"}, system=""))).system == ""


async def test_a_model_from_the_built_in_one_is_whole(with_builtin: Library) -> None:
    entry = await with_builtin.create("mine", recipe(**{"from": "handbook"}, system="s"))
    assert served_bytes(entry) == GGUF
    assert entry.params == {"temperature": 0}


async def test_replacing_a_model_drops_what_only_it_used(store: Store, library: Library) -> None:
    await library.upload(DIGEST, chunks(GGUF))
    await library.create("mine", uploaded(system="first"))
    await library.create("MINE", uploaded(system="second"))
    assert len(await library.list()) == 1
    assert f"sha256-{hashlib.sha256(b'first').hexdigest()}" not in store.blobs()


async def test_a_family_we_cannot_run_is_refused_by_name_and_nothing_stays(
    store: Store, inspector: Inspector, library: Library
) -> None:
    inspector.info = msgspec.structs.replace(
        INFO, is_supported=False, reason="family 'mamba' is not implemented"
    )
    await library.upload(DIGEST, chunks(GGUF))
    with pytest.raises(Unsupported, match="mamba"):
        await library.create("mine", uploaded(system="s"))
    assert store.everything() == {}


async def test_a_refused_file_that_another_model_uses_stays(
    store: Store, inspector: Inspector, library: Library
) -> None:
    store.model(f"{LIB}/other/latest", {"model": GGUF})
    inspector.info = msgspec.structs.replace(INFO, is_supported=False, reason="no")
    before = store.everything()
    with pytest.raises(Unsupported):
        await library.create("mine", uploaded())
    assert store.everything() == before


@pytest.mark.parametrize(
    ("fields", "error", "text"),
    [
        ({}, RequestError, "neither"),
        ({"from": "a", "files": {"a": DIGEST}}, RequestError, "both"),
        ({"files": {"a": DIGEST, "b": DIGEST}}, Unsupported, "one GGUF file"),
        ({"files": {"a": "sha256:" + "0" * 64}}, RequestError, "no such blob"),
        ({"files": {"a": "../../etc/passwd"}}, RequestError, "invalid digest"),
        ({"from": "nope"}, ModelNotFound, "not found"),
        ({"from": "../nope"}, RequestError, "invalid model name"),
        ({"files": {"a": DIGEST}, "quantize": "Q4_0"}, Unsupported, "quantize"),
        ({"files": {"a": DIGEST}, "adapters": {"a": DIGEST}}, Unsupported, "adapters"),
        ({"files": {"a": DIGEST}, "template": "{{ .Prompt }}"}, Unsupported, "Go"),
        ({"files": {"a": DIGEST}, "template": "{% for %}"}, RequestError, "template cannot be used: line 1"),
        (
            {"files": {"a": DIGEST}, "template": "{{ x|nofilter }}"},
            RequestError,
            "no filter named 'nofilter'",
        ),
        ({"files": {"a": DIGEST}, "parameters": {"nope": 1}}, RequestError, "unknown parameter 'nope'"),
        ({"files": {"a": DIGEST}, "parameters": {"top_k": "x"}}, RequestError, '"top_k" must be of type'),
        ({"files": {"a": DIGEST}, "messages": [{"role": "tool", "content": ""}]}, RequestError, "role"),
    ],
)
async def test_a_recipe_that_makes_no_sense_is_refused(
    library: Library, fields: dict[str, object], error: type[ModelError], text: str
) -> None:
    await library.upload(DIGEST, chunks(GGUF))
    with pytest.raises(error, match=text):
        await library.create("mine", recipe(**fields))
    assert await library.list() == []


async def test_show_writes_a_modelfile_that_makes_the_same_model(library: Library) -> None:
    await library.upload(DIGEST, chunks(GGUF))
    entry = await library.create(
        "mine",
        uploaded(
            system='Say "yes"',
            template=JINJA,
            license=["MIT\n\nText"],
            parameters={"stop": ["a b", "c"], "top_p": 0.5},
            messages=[{"role": "user", "content": "two\nlines"}],
        ),
    )
    parsed = parse_modelfile(modelfile_of(entry))
    assert (parsed.system, parsed.template, parsed.license) == ('Say "yes"', JINJA, ("MIT\n\nText",))
    assert parsed.parameters == entry.params
    assert parsed.messages == (("user", "two\nlines"),)
    assert parsed.base == entry.spec().path


async def test_parameters_are_shown_in_ollamas_columns(library: Library) -> None:
    await library.upload(DIGEST, chunks(GGUF))
    entry = await library.create("mine", uploaded(parameters={"stop": ["<|e|>"], "top_k": 3}))
    assert parameters_text(entry).splitlines() == [f'{"stop":<30} "<|e|>"', f"{'top_k':<30} 3"]


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (8_030_261_248, "8.0B"),
        (1_000_000_000, "1.0B"),
        (137_000_000, "137M"),
        (22_565_376, "22.57M"),
        (512_000, "512K"),
        (12, "12"),
    ],
)
def test_parameters_are_counted_in_words(n: int, text: str) -> None:
    assert human_count(n) == text
