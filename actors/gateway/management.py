"""Ollama's endpoints about models: the library, what is loaded, and what a model is."""

from datetime import UTC, datetime, timedelta

import msgspec

from actors.errors import ModelNotFound, RequestError
from actors.gateway.exchange import Exchange
from actors.gateway.fields import Fields
from actors.gateway.leases import Leases
from actors.gateway.library.capabilities import capabilities
from actors.gateway.library.entry import Entry
from actors.gateway.library.recipe import Recipe
from actors.gateway.library.show import modelfile_of, parameters_text
from actors.gateway.library.store import Library
from actors.gateway.shapes import (
    DetailsShape,
    RunningShape,
    ShowShape,
    TagShape,
    TensorShape,
    TurnShape,
    WaitingShape,
    duration_ns,
    time_text,
)
from actors.gateway.templates.chat import served_template
from actors.protocol import LoadedModel, MemoryItem, ModelInfo, WaitingModel

FOR_EVER = timedelta(days=200 * 365)  # clients say "Forever" of anything decades away
NOT_HERE_YET = frozenset(("tools",))  # a template may know it; the gateway does not parse it yet


class OllamaModels:
    """The handlers."""

    def __init__(self, library: Library, leases: Leases) -> None:
        self._library = library
        self._leases = leases

    async def tags(self, exchange: Exchange) -> None:
        """GET /api/tags: the library, newest first."""
        models = [
            TagShape(
                name=entry.name.display,
                model=entry.name.display,
                modified_at=time_text(entry.modified_at),
                size=entry.size_bytes,
                digest=entry.digest,
                details=_details(entry),
            )
            for entry in await self._library.list()
        ]
        await exchange.reply({"models": models})

    async def running(self, exchange: Exchange) -> None:
        """GET /api/ps: what is loaded, the one that stays longest first; and what somebody waits for."""
        answer = await self._leases.loaded()
        loaded = list(answer.models)
        loaded.sort(key=lambda model: -(float("inf") if model.expires_in_s is None else model.expires_in_s))
        status = {each.model.digest: each.reason for each in answer.waiting}
        models = [await self._running(model, status.get(model.model.digest, "")) for model in loaded]
        waiting = [_waiting(each) for each in answer.waiting]
        await exchange.reply({"models": models, "waiting": waiting} if waiting else {"models": models})

    async def _running(self, loaded: LoadedModel, status: str) -> RunningShape:
        try:
            entry = await self._library.find(loaded.model.name)
        except ModelNotFound:
            entry = None  # deleted while loaded
        n_bytes = {device.id: sum(map(_bytes, _items(loaded, device.id))) for device in loaded.report.devices}
        stays = FOR_EVER if loaded.expires_in_s is None else timedelta(seconds=loaded.expires_in_s)
        return RunningShape(
            name=loaded.model.name,
            model=loaded.model.name,
            size=sum(n_bytes.values()) + _bytes(loaded.report.input_weights),
            digest=entry.digest if entry is not None else loaded.model.digest.removeprefix("sha256:"),
            details=_details(entry) if entry is not None else _NO_DETAILS,
            expires_at=time_text(datetime.now(UTC) + min(stays, FOR_EVER)),
            size_vram=sum(n for device, n in n_bytes.items() if device != "cpu"),
            context_length=loaded.report.n_ctx,
            status=status or str(loaded.progress) if loaded.progress is not None else "",
        )

    async def show(self, exchange: Exchange) -> None:
        """POST /api/show: everything known of a model."""
        fields = await exchange.fields("ShowRequest")
        entry = await self._library.find(_model_name(fields))
        info = await entry.info()
        await exchange.reply(
            ShowShape(
                license="\n".join(entry.license),
                modelfile=modelfile_of(entry),
                parameters=parameters_text(entry),
                template=fields.text("template") or served_template(entry, info) or entry.template or "",
                system=fields.text("system") or entry.system,
                details=_details(entry, info),
                messages=tuple(TurnShape(message.role, message.content) for message in entry.messages),
                model_info=_model_info(info),
                tensors=tuple(
                    TensorShape(tensor.name, tensor.dtype, tensor.shape) for tensor in info.tensors
                ),
                capabilities=tuple(name for name in capabilities(entry, info) if name not in NOT_HERE_YET),
                modified_at=time_text(entry.modified_at),
            )
        )

    async def copy(self, exchange: Exchange) -> None:
        """POST /api/copy: another name for a model."""
        fields = await exchange.fields("CopyRequest")
        await self._library.copy(fields.text("source"), fields.text("destination"))
        await exchange.reply_bytes(b"")

    async def delete(self, exchange: Exchange) -> None:
        """DELETE /api/delete."""
        fields = await exchange.fields("DeleteRequest")
        await self._library.delete(_model_name(fields))
        await exchange.reply_bytes(b"")

    async def create(self, exchange: Exchange) -> None:
        """POST /api/create: make a model, telling how far it is."""
        fields = await exchange.fields("CreateRequest")
        name = _model_name(fields)
        try:
            recipe = msgspec.convert(
                {key: value for key, value in fields.values.items() if value is not None}, Recipe, strict=True
            )
        except msgspec.ValidationError as exc:
            raise RequestError(f"create: {exc}", where="body") from exc
        is_stream = fields.truth("stream", default=True)

        async def progress(status: str) -> None:
            if is_stream:
                await exchange.push({"status": status})

        await self._library.create(name, recipe, progress)
        if is_stream:
            await exchange.finish()
        else:
            await exchange.reply({"status": "success"})

    async def has_blob(self, exchange: Exchange) -> None:
        """HEAD /api/blobs/:digest: 200 or 404."""
        found = await self._library.has_blob(exchange.request.path_params["digest"])
        await exchange.reply_bytes(b"", status=200 if found else 404)

    async def upload(self, exchange: Exchange) -> None:
        """POST /api/blobs/:digest: 201 created, 200 when it was there."""
        created = await self._library.upload(exchange.request.path_params["digest"], _Parts(exchange))
        await exchange.reply_bytes(b"", status=201 if created else 200)


class _Parts:
    """A request's body, to iterate over.  Not a generator: one that is left half way would need closing."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def __aiter__(self) -> "_Parts":
        return self

    async def __anext__(self) -> bytes:
        part = await self._exchange.next_part()
        if part is None:
            raise StopAsyncIteration
        return part


def _model_name(fields: Fields) -> str:
    name = fields.text("model") or fields.text("name")
    if not name:
        raise RequestError("model is required", where="body.model")
    return name


_NO_DETAILS = DetailsShape(
    parent_model="", format="gguf", family="", families=None, parameter_size="", quantization_level=""
)


def _details(entry: Entry, info: ModelInfo | None = None) -> DetailsShape:
    config = entry.config
    architecture = info.architecture if info is not None else ""
    embedding = info.metadata.get(f"{architecture}.embedding_length") if info is not None else None
    context = (
        info.metadata.get(f"{architecture}.context_length") if info is not None else config.context_length
    )
    return DetailsShape(
        parent_model="",
        format=config.model_format,
        family=config.model_family,
        families=config.families or None,
        parameter_size=config.model_type,
        quantization_level=config.file_type,
        context_length=context if isinstance(context, int) else 0,
        embedding_length=embedding if isinstance(embedding, int) else 0,
    )


def _model_info(info: ModelInfo) -> dict[str, object]:
    hidden = ("general.name", "tokenizer.chat_template")
    shown: dict[str, object] = {key: value for key, value in info.metadata.items() if key not in hidden}
    shown["general.architecture"] = info.architecture
    shown["general.parameter_count"] = info.n_parameters
    return dict(sorted(shown.items()))


def _waiting(waiting: WaitingModel) -> WaitingShape:
    return WaitingShape(
        name=waiting.model.name,
        model=waiting.model.name,
        status=waiting.reason,
        requests=waiting.n_waiting,
        requests_before=waiting.position,
        waited=duration_ns(waiting.waited_s),
    )


def _items(loaded: LoadedModel, device_id: str) -> list[MemoryItem]:
    return [
        item
        for device in loaded.report.devices
        if device.id == device_id
        for item in (*device.weights, *device.cache, device.graph, device.overhead)
    ]


def _bytes(item: MemoryItem) -> int:
    return item.measured_bytes or item.planned_bytes
