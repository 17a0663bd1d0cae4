"""The endpoints about models, and the library over the socket protocol."""

from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import sha256
from pathlib import Path

import pytest
import trio

from actors.inherited import bind_unix, listener_of
from actors.link import connect, serve
from actors.protocol import (
    ListModels,
    LoadedModel,
    LoadOptions,
    LoadProgress,
    Models,
    ModelSpec,
    Resolve,
    WaitingModel,
)
from tests.actors.gateway_rig import TEMPLATE, Rig, gateway_rig, report

DETAILS = {
    "parent_model": "",
    "format": "gguf",
    "family": "llama",
    "families": ["llama"],
    "parameter_size": "8M",
    "quantization_level": "Q8_0",
    "context_length": 2048,
}


@pytest.fixture
async def rig(run_dir: Path, tmp_path: Path) -> AsyncGenerator[Rig, None]:
    async with gateway_rig(run_dir, tmp_path) as made:
        yield made


async def own_tags(rig: Rig) -> list[dict[str, object]]:
    models = (await rig.client.get("/api/tags")).json()["models"]
    return [model for model in models if model["name"] != "handbook:latest"]


async def test_tags_lists_a_model_with_every_field(rig: Rig, tmp_path: Path) -> None:
    await rig.add_model()
    (tiny,) = await own_tags(rig)
    manifest = (tmp_path / "manifests/registry.ollama.ai/library/tiny/latest").read_bytes()
    assert datetime.fromisoformat(str(tiny.pop("modified_at"))).tzinfo is not None
    assert int(str(tiny.pop("size"))) > 0
    assert tiny == {
        "name": "tiny:latest",
        "model": "tiny:latest",
        "digest": sha256(manifest).hexdigest(),
        "details": DETAILS,
    }


async def test_tags_is_newest_first(rig: Rig) -> None:
    for name in ("a", "b"):
        await rig.add_model(name)
    assert [model["name"] for model in await own_tags(rig)] == ["b:latest", "a:latest"]


async def test_show_has_every_field(rig: Rig) -> None:
    await rig.add_model(system="be kind", parameters={"temperature": 0.5, "stop": ["x"]}, license="MIT")
    shown = (await rig.post("/api/show", {"model": "tiny"})).json()
    assert datetime.fromisoformat(shown.pop("modified_at")).tzinfo is not None
    assert "FROM" in shown.pop("modelfile")
    assert shown == {
        "license": "MIT",
        "parameters": f'{"temperature":<30} 0.5\n{"stop":<30} "x"',
        "template": TEMPLATE,
        "system": "be kind",
        "details": {**DETAILS, "embedding_length": 64},
        "model_info": {
            "general.architecture": "llama",
            "general.parameter_count": 8_000_000,
            "llama.context_length": 2048,
            "llama.embedding_length": 64,
            "tokenizer.ggml.tokens": [],
        },
        "tensors": [{"name": "output.weight", "type": "Q8_0", "shape": [64, 320]}],
        "capabilities": ["completion"],
    }


async def test_show_takes_the_old_field_name_and_says_what_is_missing(rig: Rig) -> None:
    await rig.add_model()
    assert (await rig.post("/api/show", {"name": "tiny"})).status_code == 200
    missing = await rig.post("/api/show", {"model": "no"})
    assert (missing.status_code, missing.json()) == (404, {"error": "model 'no' not found"})
    unnamed = await rig.post("/api/show", {})
    assert (unnamed.status_code, unnamed.json()) == (400, {"error": "model is required"})


async def test_ps_tells_measured_sizes_and_when_a_model_goes(rig: Rig) -> None:
    digest = await rig.add_model()
    spec = ModelSpec("tiny:latest", digest, "/x", 1)
    rig.scheduler.loaded = (
        LoadedModel(spec, LoadOptions(), "1", 1, report(), expires_in_s=60, n_leases=0),
        LoadedModel(spec, LoadOptions(), "2", 2, report(), expires_in_s=None, n_leases=0),
    )
    for_ever, tiny = (await rig.client.get("/api/ps")).json()["models"]
    left = datetime.fromisoformat(tiny.pop("expires_at")) - datetime.now(UTC)
    assert timedelta(seconds=50) < left <= timedelta(seconds=60)
    assert datetime.fromisoformat(for_ever["expires_at"]).year > 2100
    assert tiny == {
        "name": "tiny:latest",
        "model": "tiny:latest",
        "size": 20 * (3 + 5 + 1),
        "digest": (await own_tags(rig))[0]["digest"],
        "details": DETAILS,
        "size_vram": 20 * 5,
        "context_length": 4096,
    }


async def test_ps_says_how_far_a_load_is_and_who_waits(rig: Rig) -> None:
    progress = LoadProgress(phase="reading", done_bytes=37, total_bytes=100)
    spec, other, left = (ModelSpec(f"{name}:latest", f"sha256:{name}", "/m", 1) for name in "abc")
    rig.scheduler.loaded = (
        LoadedModel(spec, LoadOptions(), "r", 1, report(), expires_in_s=60, n_leases=0, progress=progress),
        LoadedModel(left, LoadOptions(), "s", 1, report(), expires_in_s=50, n_leases=0, progress=progress),
    )
    rig.scheduler.waiting = (
        WaitingModel(spec, LoadOptions(), 2, 1.5, 0, "reading 37 %", progress),
        WaitingModel(other, LoadOptions(), 1, 0.5, 2, "evicting c:latest"),
    )
    answer = (await rig.client.get("/api/ps")).json()
    assert [model["status"] for model in answer["models"]] == ["reading 37 %"] * 2  # also if nobody waits
    assert answer["waiting"][1] == {
        "name": "b:latest",
        "model": "b:latest",
        "status": "evicting c:latest",
        "requests": 1,
        "requests_before": 2,
        "waited": 500_000_000,
    }


async def test_copy_gives_a_second_name_and_delete_takes_it_away(rig: Rig) -> None:
    await rig.add_model()
    copied = await rig.post("/api/copy", {"source": "tiny", "destination": "me/twin"})
    assert (copied.status_code, copied.content) == (200, b"")
    assert {model["name"] for model in await own_tags(rig)} == {"tiny:latest", "me/twin:latest"}
    deleted = await rig.client.request("DELETE", "/api/delete", json={"model": "tiny"})
    assert (deleted.status_code, deleted.content) == (200, b"")
    assert [model["name"] for model in await own_tags(rig)] == ["me/twin:latest"]


async def test_deleting_what_is_not_there_is_404(rig: Rig) -> None:
    answer = await rig.client.request("DELETE", "/api/delete", json={"name": "no"})
    assert (answer.status_code, answer.json()) == (404, {"error": "model 'no' not found"})


async def test_create_streams_statuses_and_success_last(rig: Rig) -> None:
    await rig.add_model()
    response = await rig.post("/api/create", {"model": "child", "from": "tiny", "system": "be kind"})
    assert response.headers["content-type"] == "application/x-ndjson"
    assert response.text.splitlines()[-1] == '{"status":"success"}'
    assert (await rig.post("/api/show", {"model": "child"})).json()["system"] == "be kind"


async def test_create_from_nothing_is_400(rig: Rig) -> None:
    answer = await rig.post("/api/create", {"model": "child"})
    assert (answer.status_code, answer.json()) == (400, {"error": "neither 'from' nor 'files' was specified"})


async def test_blobs_are_probed_and_uploaded_once(rig: Rig) -> None:
    path = "/api/blobs/sha256:" + sha256(b"data").hexdigest()
    statuses = [
        (await rig.client.head(path)).status_code,
        (await rig.client.post(path, content=b"data")).status_code,
        (await rig.client.post(path, content=b"data")).status_code,
        (await rig.client.head(path)).status_code,
    ]
    assert statuses == [404, 201, 200, 200]


async def test_a_blob_of_another_digest_and_a_bad_digest_are_400(rig: Rig) -> None:
    path = "/api/blobs/sha256:" + sha256(b"data").hexdigest()
    assert (await rig.client.post(path, content=b"other")).status_code == 400
    assert (await rig.client.head("/api/blobs/sha256:12")).status_code == 400
    assert (await rig.client.head(path)).status_code == 404


async def test_blobs_may_be_larger_than_other_bodies(run_dir: Path, tmp_path: Path) -> None:
    async with gateway_rig(run_dir, tmp_path, max_body_bytes=1000) as rig:
        data = bytes(100_000)
        path = f"/api/blobs/sha256:{sha256(data).hexdigest()}"
        assert (await rig.client.post(path, content=data)).status_code == 201
        assert (await rig.post("/api/show", {"model": "x" * 2000})).status_code == 413


async def test_the_library_answers_over_the_socket_protocol(rig: Rig, run_dir: Path) -> None:
    digest = await rig.add_model()
    listener = listener_of(bind_unix(f"{run_dir}/gateway.sock"))
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve, listener, rig.gateway.handle, name="gateway"))
        async with connect(f"unix:{run_dir}/gateway.sock", name="test") as link:
            spec = await link.ask(Resolve("tiny"), ModelSpec)
            models = (await link.ask(ListModels(), Models)).models
        nursery.cancel_scope.cancel()
    assert (spec.name, spec.digest, spec.size_bytes) == ("tiny:latest", digest, 12)
    assert spec in models
