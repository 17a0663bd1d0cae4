"""The model library over a folder in Ollama's layout, made here by hand as Ollama makes it."""

import hashlib
import json
import math
import os
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio
import trio.testing

from actors.errors import ModelError, ModelNotFound, PeerGone, RequestError, Unsupported
from actors.gateway.library import store as store_module
from actors.gateway.library.builtin import BuiltIn
from actors.gateway.library.capabilities import capabilities
from actors.gateway.library.entry import Entry
from actors.gateway.library.store import Library
from actors.gateway.templates.language import check_language
from actors.gateway.templates.sandbox import fault_of
from actors.protocol import ModelInfo

GGUF = b"GGUF" + b"weights" * 100
INFO = ModelInfo(
    architecture="llama",
    metadata={"llama.context_length": 8192, "llama.embedding_length": 512},
    tensors=(),
    n_parameters=1_235_814_432,
    file_type="Q4_K_M",
    chat_template="{% for m in messages %}{{ m.content }}{% endfor %} <think> tools",
)


class Inspector:
    """A stand-in for the runner host: answers for every path, and counts."""

    def __init__(self, info: ModelInfo = INFO) -> None:
        self.info = info
        self.paths: list[str] = []

    async def __call__(self, path: str) -> ModelInfo:
        await trio.lowlevel.checkpoint()
        self.paths.append(path)
        return self.info


async def check_template(text: str) -> None:
    """What the workers do, in this process."""
    await trio.lowlevel.checkpoint()
    check_language(text)
    if fault := fault_of(text):
        raise RequestError(f"the template cannot be used: {fault}")


class Store:
    """A folder as Ollama leaves it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def blob(self, data: bytes) -> dict[str, object]:
        hex_digest = hashlib.sha256(data).hexdigest()
        (self.folder / "blobs").mkdir(parents=True, exist_ok=True)
        (self.folder / "blobs" / f"sha256-{hex_digest}").write_bytes(data)
        return {"digest": f"sha256:{hex_digest}", "size": len(data)}

    def model(self, path: str, layers: dict[str, bytes], *, mtime_s: float = 1e9) -> Path:
        """A manifest at manifests/`path` with a config and these layers, by Ollama's layer names."""
        config = json.dumps({"model_format": "gguf", "model_family": "llama", "model_type": "1.2B"}).encode()
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": {"mediaType": "application/vnd.docker.container.image.v1+json", **self.blob(config)},
            "layers": [
                {"mediaType": f"application/vnd.ollama.image.{kind}", "from": "/x", **self.blob(data)}
                for kind, data in layers.items()
            ],
        }
        file = self.folder / "manifests" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(manifest))
        os.utime(file, (mtime_s, mtime_s))
        return file

    def blobs(self) -> set[str]:
        return {file.name for file in (self.folder / "blobs").iterdir()}

    def everything(self) -> dict[str, bytes]:
        return {str(f): f.read_bytes() for f in self.folder.rglob("*") if f.is_file()}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models")


@pytest.fixture
def inspector() -> Inspector:
    return Inspector()


@pytest.fixture
def library(store: Store, inspector: Inspector, tmp_path: Path) -> Library:
    return Library(store.folder, inspector, BuiltIn(tmp_path / "none.gguf"), check_template=check_template)


@pytest.fixture
def with_builtin(store: Store, inspector: Inspector, tmp_path: Path) -> Library:
    (tmp_path / "handbook.gguf").write_bytes(GGUF)
    return Library(
        store.folder, inspector, BuiltIn(tmp_path / "handbook.gguf"), check_template=check_template
    )


def served_bytes(entry: Entry) -> bytes:
    """The file that a runner would be given."""
    return Path(entry.spec().path).read_bytes()


ZEROS = b"0" * 64
LIB = "registry.ollama.ai/library"


async def chunks(data: bytes, size: int = 7) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        await trio.lowlevel.checkpoint()
        yield data[start : start + size]


async def test_a_folder_of_ollama_is_served_and_not_changed(store: Store, library: Library) -> None:
    file = store.model(
        f"{LIB}/llama3.2/1b",
        {
            "model": GGUF,
            "template": b"{{ .Prompt }}",
            "system": b"Be kind.",
            "params": b'{"stop": ["<|eot|>"], "temperature": 0.2, "top_k": null}',
            "messages": b'[{"role": "user", "content": "hi"}]',
            "license": b"MIT",
        },
    )
    before = store.everything()
    [entry] = await library.list()
    assert entry.name.display == "llama3.2:1b"
    assert entry.digest == hashlib.sha256(file.read_bytes()).hexdigest()
    assert entry.params == {"stop": ["<|eot|>"], "temperature": 0.2}
    assert (entry.system, entry.template, entry.license) == ("Be kind.", "{{ .Prompt }}", ("MIT",))
    assert [(m.role, m.content) for m in entry.messages] == [("user", "hi")]
    spec = entry.spec()
    assert spec.digest == f"sha256:{hashlib.sha256(GGUF).hexdigest()}"
    assert served_bytes(entry) == GGUF
    assert store.everything() == before


async def test_the_newest_model_is_listed_first(store: Store, library: Library) -> None:
    for name, mtime_s in (("old", 1e9), ("new", 2e9), ("mid", 1.5e9)):
        store.model(f"{LIB}/{name}/latest", {"model": GGUF}, mtime_s=mtime_s)
    assert [entry.name.model for entry in await library.list()] == ["new", "mid", "old"]


async def test_an_absent_folder_is_an_empty_library(library: Library) -> None:
    assert await library.list() == []


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b'{"schemaVersion": 1}', b"\xff" * 10, b" " * (5 << 20),
     b'{"schemaVersion":2,"config":{"mediaType":"","digest":"sha256:../../x","size":1},"layers":[]}',
     b'{"schemaVersion":2,"config":{"mediaType":"","digest":"sha256:%b","size":1},"layers":[]}' % ZEROS],
)  # fmt: skip
async def test_a_corrupt_manifest_is_left_out_and_named_when_asked_for(
    store: Store, library: Library, text: bytes
) -> None:
    store.model(f"{LIB}/good/latest", {"model": GGUF})
    bad = store.folder / "manifests" / LIB / "bad" / "latest"
    bad.parent.mkdir()
    bad.write_bytes(text)
    assert [entry.name.model for entry in await library.list()] == ["good"]
    with pytest.raises(ModelError) as caught:
        await library.find("bad")
    assert not isinstance(caught.value, ModelNotFound)


async def test_files_with_names_that_are_no_names_are_passed_over(store: Store, library: Library) -> None:
    store.model(f"{LIB}/good/latest", {"model": GGUF})
    store.model(f"{LIB}/good/.DS_Store", {"model": GGUF})
    store.model(f"{LIB}/bad name/latest", {"model": GGUF})
    assert len(await library.list()) == 1


@pytest.mark.parametrize(
    "name", ["Llama", "llama:LATEST", "LIBRARY/llama", "registry.OLLAMA.ai/library/llama"]
)
async def test_a_model_is_found_in_any_case(store: Store, library: Library, name: str) -> None:
    store.model(f"{LIB}/llaMA/latest", {"model": GGUF})
    assert (await library.find(name)).name.model == "llaMA"


async def test_what_others_change_is_seen_soon_and_what_we_change_at_once(
    store: Store, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.model(f"{LIB}/m/latest", {"model": GGUF})
    file = store.model(f"{LIB}/n/latest", {"model": GGUF})
    monkeypatch.setattr(store_module, "RECENT_S", math.inf)
    entries = [await library.recall(name) for name in ("m", "n")]
    file.unlink()
    assert await library.recall("N:latest") is entries[1]
    await library.delete("m")
    for name in ("m", "n"):
        with pytest.raises(ModelNotFound):
            await library.recall(name)
    file = store.model(f"{LIB}/n/latest", {"model": GGUF})
    await library.recall("n")
    file.unlink()
    monkeypatch.setattr(store_module, "RECENT_S", 0.0)
    with pytest.raises(ModelNotFound):
        await library.recall("n")


async def test_an_unknown_model_is_told_in_the_words_that_clients_know(library: Library) -> None:
    with pytest.raises(ModelNotFound) as caught:
        await library.find("nope")
    assert caught.value.message == "model 'nope' not found"
    assert caught.value.http_status == 404


async def test_inspecting_happens_once_for_each_file(
    store: Store, library: Library, inspector: Inspector
) -> None:
    store.model(f"{LIB}/a/latest", {"model": GGUF})
    store.model(f"{LIB}/b/latest", {"model": GGUF, "system": b"x"})
    async with trio.open_nursery() as nursery:
        for entry in await library.list():
            nursery.start_soon(entry.info)
            nursery.start_soon(entry.info)
    assert len(inspector.paths) == 1


@pytest.mark.parametrize("kind", ["adapter", "tensor", "draft"])
async def test_a_model_with_a_layer_we_cannot_serve_is_listed_but_refused(
    store: Store, library: Library, kind: str
) -> None:
    store.model(f"{LIB}/x/latest", {"model": GGUF, kind: b"data"})
    [entry] = await library.list()
    with pytest.raises(Unsupported, match="layer"):
        entry.spec()


async def test_a_truncated_blob_is_named(store: Store, library: Library) -> None:
    store.model(f"{LIB}/x/latest", {"model": GGUF})
    [entry] = await library.list()
    os.truncate(entry.spec().path, len(GGUF) - 1)
    with pytest.raises(ModelError, match="lacks its blob"):
        entry.spec()


async def test_deleting_keeps_blobs_that_another_model_uses(store: Store, library: Library) -> None:
    store.model(f"{LIB}/a/latest", {"model": GGUF, "system": b"only a"})
    store.model(f"{LIB}/b/latest", {"model": GGUF})
    await library.delete("a")
    left = store.blobs()
    assert f"sha256-{hashlib.sha256(GGUF).hexdigest()}" in left
    assert f"sha256-{hashlib.sha256(b'only a').hexdigest()}" not in left
    assert [entry.name.model for entry in await library.list()] == ["b"]
    assert not (store.folder / "manifests" / LIB / "a").exists()


async def test_deleting_the_last_model_leaves_no_blob(store: Store, library: Library) -> None:
    store.model(f"{LIB}/a/latest", {"model": GGUF})
    await library.delete("A:latest")
    assert store.blobs() == set()


async def test_no_blob_is_deleted_while_some_manifest_cannot_be_read(store: Store, library: Library) -> None:
    store.model(f"{LIB}/a/latest", {"model": GGUF})
    store.model(f"{LIB}/b/latest", {"model": b"GGUF other"}).write_bytes(b"{half")
    before = store.blobs()
    await library.delete("a")
    assert store.blobs() == before


async def test_what_file_managers_leave_behind_does_not_keep_blobs(store: Store, library: Library) -> None:
    manifest = store.model(f"{LIB}/a/latest", {"model": GGUF})
    (manifest.parent.parent / ".DS_Store").write_bytes(b"x")
    store.model(f"{LIB}/b/.DS_Store", {}).write_bytes(b"x")
    await library.delete("a")
    assert f"sha256-{hashlib.sha256(GGUF).hexdigest()}" not in store.blobs()


async def test_creating_and_deleting_at_once_never_leaves_a_model_without_its_blobs(
    store: Store, library: Library
) -> None:
    store.model(f"{LIB}/base/latest", {"model": GGUF, "system": b"shared"})

    async def copy(n: int) -> None:
        with suppress(ModelError):  # the base may be gone by now
            await library.copy("base", f"copy{n}")

    async with trio.open_nursery() as nursery:
        for n in range(8):
            nursery.start_soon(copy, n)
        nursery.start_soon(library.delete, "base")
    for entry in await library.list():
        assert served_bytes(entry) == GGUF


async def test_a_copy_shares_every_blob(store: Store, library: Library) -> None:
    store.model(f"{LIB}/a/latest", {"model": GGUF})
    before = store.blobs()
    await library.copy("a", "jo/b:2")
    assert (await library.find("jo/b:2")).digest == (await library.find("a")).digest
    assert store.blobs() == before


async def test_copying_over_a_model_drops_what_only_it_used(store: Store, library: Library) -> None:
    store.model(f"{LIB}/a/latest", {"model": GGUF})
    store.model(f"{LIB}/B/latest", {"model": b"GGUF old"})
    await library.copy("a", "b")
    assert f"sha256-{hashlib.sha256(b'GGUF old').hexdigest()}" not in store.blobs()
    assert len(await library.list()) == 2


async def test_an_uploaded_blob_is_there_under_its_digest(store: Store, library: Library) -> None:
    digest = f"sha256:{hashlib.sha256(GGUF).hexdigest()}"
    assert not await library.has_blob(digest)
    assert await library.upload(digest, chunks(GGUF))
    assert await library.has_blob(digest)
    assert not await library.upload(digest, chunks(GGUF))
    assert store.blobs() == {digest.replace(":", "-")}


async def test_a_blob_with_another_digest_is_refused_and_leaves_nothing(
    store: Store, library: Library
) -> None:
    with pytest.raises(RequestError, match="digest mismatch"):
        await library.upload("sha256:" + "0" * 64, chunks(GGUF))
    assert store.blobs() == set()


async def test_an_upload_that_is_cancelled_leaves_nothing(store: Store, library: Library) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b"x" * (2 << 20)
        started.set()
        await trio.sleep_forever()

    started = trio.Event()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(library.upload, "sha256:" + "0" * 64, endless())
            await started.wait()
            nursery.cancel_scope.cancel()
    assert store.blobs() == set()


async def test_the_built_in_model_is_listed_last_and_served_in_place(
    store: Store, with_builtin: Library, tmp_path: Path
) -> None:
    store.model(f"{LIB}/a/latest", {"model": GGUF}, mtime_s=1)
    entry = (await with_builtin.list())[-1]
    assert (entry.name.display, entry.is_builtin) == ("handbook:latest", True)
    assert entry.spec().path == str(tmp_path / "handbook.gguf")
    assert (entry.config.model_type, entry.config.file_type) == ("1.2B", "Q4_K_M")
    assert (await with_builtin.find("Handbook")).digest == entry.digest


async def test_a_model_of_the_user_hides_the_built_in_one(store: Store, with_builtin: Library) -> None:
    store.model(f"{LIB}/handbook/latest", {"model": b"GGUF mine"})
    [entry] = await with_builtin.list()
    assert not entry.is_builtin


async def test_the_built_in_model_cannot_be_deleted(with_builtin: Library) -> None:
    with pytest.raises(RequestError, match="comes with the runtime"):
        await with_builtin.delete("handbook")


async def test_a_copy_of_the_built_in_model_is_the_users_own(with_builtin: Library) -> None:
    await with_builtin.copy("handbook", "mine")
    mine = await with_builtin.find("mine")
    assert served_bytes(mine) == GGUF
    assert mine.digest == (await with_builtin.find("handbook")).digest
    await with_builtin.delete("mine")


async def test_the_list_does_without_the_built_in_model_while_nobody_can_read_it(
    store: Store, tmp_path: Path
) -> None:
    async def gone(_path: str) -> ModelInfo:
        await trio.lowlevel.checkpoint()
        raise PeerGone("no runner host")

    (tmp_path / "handbook.gguf").write_bytes(GGUF)
    library = Library(store.folder, gone, BuiltIn(tmp_path / "handbook.gguf"), check_template=check_template)
    assert await library.list() == []
    with pytest.raises(PeerGone):
        await library.find("handbook")


async def test_a_listing_does_not_wait_long_for_what_only_the_built_in_model_needs(
    store: Store, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async def never(_path: str) -> ModelInfo:
        await trio.sleep_forever()
        raise AssertionError

    (tmp_path / "handbook.gguf").write_bytes(GGUF)
    library = Library(store.folder, never, BuiltIn(tmp_path / "handbook.gguf"), check_template=check_template)
    begun_s = trio.current_time()
    assert await library.list() == []
    assert trio.current_time() - begun_s < 4


async def test_a_warm_library_lists_the_built_in_model_without_reading_it(
    inspector: Inspector, with_builtin: Library
) -> None:
    await with_builtin.warm()
    n_read = len(inspector.paths)
    assert [entry.name.display for entry in await with_builtin.list()] == ["handbook:latest"]
    assert (n_read, len(inspector.paths)) == (1, 1)


async def test_capabilities_are_what_the_template_speaks_of(store: Store, library: Library) -> None:
    store.model(f"{LIB}/a/latest", {"model": GGUF, "template": b"{{ .Suffix }}"})
    [entry] = await library.list()
    assert capabilities(entry, await entry.info()) == ("completion", "tools", "thinking")


async def test_a_pooling_type_makes_an_embedding_model(
    store: Store, inspector: Inspector, library: Library
) -> None:
    inspector.info = ModelInfo("bert", {"bert.pooling_type": 1}, (), 1, "F16")
    store.model(f"{LIB}/a/latest", {"model": GGUF})
    [entry] = await library.list()
    assert capabilities(entry, await entry.info()) == ("embedding",)
