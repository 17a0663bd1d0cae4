"""Making models: from a GGUF blob or from another model, with layers replaced."""

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import msgspec
import trio

from actors.errors import ModelError, RequestError, Unsupported
from actors.gateway.library import disk
from actors.gateway.library.blobs import Blobs
from actors.gateway.library.digest import parse_digest
from actors.gateway.library.entry import Entry
from actors.gateway.library.manifest import (
    CONFIG_TYPE,
    JINJA_TYPE,
    LICENSE_TYPE,
    MESSAGES_TYPE,
    MODEL_TYPE,
    OLD_TEMPLATE_TYPE,
    PARAMS_TYPE,
    SYSTEM_TYPE,
    TEMPLATE_TYPE,
    Config,
    Layer,
    Manifest,
    Message,
    OptionValue,
    make_layer,
)
from actors.gateway.library.recipe import Recipe
from actors.options import DEPRECATED, check_option
from actors.protocol import ModelInfo

ROLES = ("system", "user", "assistant")

Progress = Callable[[str], Awaitable[None]]
CheckTemplate = Callable[[str], Awaitable[None]]  # raises RequestError
Source = tuple[Config | Layer, tuple[Layer, ...]]  # a config to write, or one that is stored
Text = tuple[str, bytes]  # media type, content


async def prepare(
    recipe: Recipe,
    find: Callable[[str], Awaitable[Entry]],
    blobs: Blobs,
    inspect: Callable[[str], Awaitable[ModelInfo]],
    check_template: CheckTemplate,
    progress: Progress,
    file: Path | None = None,
) -> Callable[[], bytes]:
    """Check everything, store the base's blobs; what is left writes the small layers and gives the manifest.

    Raises Unsupported, ModelError and RequestError before anything is written.
    """
    recipe.check(has_file=file is not None)
    if recipe.template:
        await check_template(recipe.template)
    texts = await trio.to_thread.run_sync(_texts, recipe, limiter=disk.LIMITER)
    if recipe.base:
        entry = await find(recipe.base)
        entry.spec()  # refuses by name what cannot be served
        await progress(f"using already created layer {entry.contents.gguf_digest}")
        await trio.to_thread.run_sync(stored_manifest, blobs, entry, limiter=disk.LIMITER)
        base: Source = (entry.contents.manifest.config, entry.contents.manifest.layers)
        texts = _merge_params(entry.params, texts)
    else:
        base = await _from_gguf(recipe, blobs, inspect, progress, file)
    for kind, _ in texts:
        await progress(f"creating {kind.rpartition('.')[2]} layer")
    return lambda: _build(blobs, base, texts)


def stored_manifest(blobs: Blobs, entry: Entry) -> bytes:
    """The manifest file of a model whose blobs are in the store (the built-in one's are copied).  Blocks."""
    if not entry.is_builtin:
        for layer in (entry.contents.manifest.config, *entry.contents.manifest.layers):
            path = blobs.path(parse_digest(layer.digest))
            if not path.is_file():
                raise ModelError(f"{entry.name.display} lacks its blob {path.name}", where=str(blobs.folder))
        return entry.contents.data
    assert entry.contents.gguf is not None
    blobs.add_file(entry.contents.gguf)
    blobs.add(msgspec.json.encode(entry.config))
    blobs.add(msgspec.json.encode(dict(entry.params)))
    return entry.contents.data


def config_of(info: ModelInfo) -> Config:
    """The config blob of a GGUF model."""

    def count(key: str) -> int:
        value = info.metadata.get(f"{info.architecture}.{key}")
        return value if isinstance(value, int) else 0

    return Config(
        model_format="gguf",
        model_family=info.architecture,
        model_families=(info.architecture,),
        model_type=human_count(info.n_parameters),
        file_type=info.file_type,
        context_length=count("context_length"),
        embedding_length=count("embedding_length"),
    )


def human_count(n: int) -> str:
    """A number of parameters as Ollama writes it: "8.0B", "137M", "22.6M", "512K"."""
    for size, sign, digits in ((10**9, "B", 1), (10**6, "M", 2), (10**3, "K", 0)):
        if n >= size:
            if sign == "M" and n % size == 0:
                digits = 0
            return f"{n / size:.{digits}f}{sign}"
    return str(n)


async def _from_gguf(
    recipe: Recipe,
    blobs: Blobs,
    inspect: Callable[[str], Awaitable[ModelInfo]],
    progress: Progress,
    file: Path | None,
) -> Source:
    if file is not None:
        path, shown = file, str(file)
    else:
        (shown, text), *_ = recipe.files.items()
        path = blobs.path(parse_digest(text))
    if not await trio.to_thread.run_sync(path.is_file, limiter=disk.LIMITER):
        raise RequestError(f"no such blob or file: {shown}", where="library.create", mend="upload it first")
    await progress("parsing GGUF")
    try:
        info = await inspect(str(path))
    except ModelError as fault:
        # users know their file, not the name of its blob
        text = fault.message.replace(str(path), shown)
        raise type(fault)(text, where=fault.where, mend=fault.mend) from fault
    if not info.is_supported:
        raise Unsupported(f"{shown}: {info.reason}", where="library.create")
    if file is not None:
        await progress("copying file")
        path = blobs.path(await trio.to_thread.run_sync(blobs.add_file, file, limiter=disk.LIMITER))
    digest = parse_digest(path.name)
    await progress(f"using existing layer {digest}")
    return config_of(info), (make_layer(MODEL_TYPE, digest, path.stat().st_size),)


def _texts(recipe: Recipe) -> list[Text]:
    """The small layers a recipe asks for, as (media type, bytes), checked; no bytes: take the base's away."""
    texts: list[Text] = []
    if recipe.template is not None:
        texts.append((JINJA_TYPE, recipe.template.encode()))
    if recipe.system is not None:
        texts.append((SYSTEM_TYPE, recipe.system.encode()))
    texts.extend((LICENSE_TYPE, text.encode()) for text in recipe.licenses if text)
    if recipe.parameters is not None:
        texts.append((PARAMS_TYPE, msgspec.json.encode(_checked(recipe.parameters))))
    if recipe.messages is not None:
        texts.append((MESSAGES_TYPE, msgspec.json.encode([_checked_message(m) for m in recipe.messages])))
    return texts


def _checked(parameters: Mapping[str, OptionValue | None]) -> dict[str, OptionValue]:
    return {
        name: check_option(name, value)
        for name, value in parameters.items()
        if value is not None and name not in DEPRECATED
    }


def _checked_message(message: Message) -> Message:
    if message.role not in ROLES:
        raise RequestError(
            f"MESSAGE has the role {message.role!r}", where="library.create", mend="use " + ", ".join(ROLES)
        )
    return message


def _merge_params(inherited: Mapping[str, OptionValue], texts: list[Text]) -> list[Text]:
    """Parameters of the base stay unless the recipe names them; all other layers are replaced whole."""
    return [
        (kind, msgspec.json.encode({**inherited, **msgspec.json.decode(data, type=dict[str, OptionValue])}))
        if kind == PARAMS_TYPE
        else (kind, data)
        for kind, data in texts
    ]


def _build(blobs: Blobs, base: Source, texts: list[Text]) -> bytes:
    """Write the small layers and put the manifest together; blocks."""
    config, inherited = base
    replaced = {kind for kind, _ in texts}
    if JINJA_TYPE in replaced:
        replaced |= {TEMPLATE_TYPE, OLD_TEMPLATE_TYPE}
    layers = [layer for layer in inherited if layer.media_type not in replaced]
    for layer in layers:
        path = blobs.path(parse_digest(layer.digest))
        if not path.is_file():
            raise ModelError(
                f"blob {path.name} was deleted meanwhile", where=str(blobs.folder), mend="create it again"
            )
    layers += [make_layer(kind, blobs.add(data), len(data)) for kind, data in texts if data]
    if isinstance(config, Config):
        data = msgspec.json.encode(config)
        config = make_layer(CONFIG_TYPE, blobs.add(data), len(data))
    return msgspec.json.encode(Manifest(config, tuple(layers)))
