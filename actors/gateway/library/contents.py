"""From a manifest's bytes to what a model consists of.  Blocks: it reads the small layers."""

from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from actors.errors import ModelError, ModelNotFound, RequestError
from actors.gateway.library.digest import Digest, digest_bytes, parse_digest
from actors.gateway.library.entry import Contents
from actors.gateway.library.manifest import (
    JINJA_TYPE,
    LICENSE_TYPE,
    MAX_LAYER_BYTES,
    MESSAGES_TYPE,
    MODEL_TYPE,
    OLD_TEMPLATE_TYPE,
    PARAMS_TYPE,
    REFUSED_TYPES,
    SYSTEM_TYPE,
    TEMPLATE_TYPE,
    TEXT_TYPES,
    Config,
    Layer,
    Manifest,
    Message,
    OptionValue,
    decode_config,
    decode_manifest,
    decode_messages,
    decode_params,
)

MEND = "remove the manifest, or create or pull the model again"


@dataclass(slots=True)
class _Parts:
    """What the layers said so far."""

    gguf: Digest | None = None
    gguf_bytes: int = 0
    go_template: str | None = None
    jinja: str | None = None
    system: str = ""
    params: dict[str, OptionValue] = field(default_factory=dict[str, OptionValue])
    messages: tuple[Message, ...] = ()
    license: tuple[str, ...] = ()
    refused: str = ""


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """A small file; ModelNotFound if absent, ModelError if too large or unreadable."""
    try:
        with path.open("rb") as stream:
            data = stream.read(max_bytes + 1)
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise ModelNotFound(f"no file {path.name}", where=str(path)) from exc
    except OSError as exc:
        raise ModelError(f"cannot read {path}: {exc.strerror}", where="library") from exc
    if len(data) > max_bytes:
        raise ModelError(f"{path} is larger than {max_bytes} bytes", where="library")
    return data


def read_contents(data: bytes, path: Path, blobs: Path) -> Contents:
    """What the manifest with these bytes says; ModelError, naming `path`, where it lies, if it is bad."""
    try:
        manifest = decode_manifest(data)
        config = decode_config(_blob(manifest.config, blobs)) if manifest.config.size else Config()
        return _assemble(data, manifest, config, blobs)
    except ModelNotFound as fault:
        blob = fault.message.removeprefix("no file ")
        raise ModelError(f"its blob {blob} is missing", where=str(path), mend=MEND) from fault
    except RequestError as fault:
        raise ModelError(fault.message, where=str(path), mend=MEND) from fault
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise ModelError(f"bad manifest {path}: {exc}", where=str(path), mend=MEND) from exc


def _assemble(data: bytes, manifest: Manifest, config: Config, blobs: Path) -> Contents:
    parts = _Parts()
    for layer in manifest.layers:
        _take(parts, layer, blobs)
    every = (manifest.config, *manifest.layers)
    if not parts.refused and config.remote_host:
        parts.refused = "its weights on another host"
    return Contents(
        digest=digest_bytes(data),
        size_bytes=sum(layer.size for layer in every),
        config=config,
        manifest=manifest,
        data=data,
        gguf=blobs / parts.gguf.file_name if parts.gguf is not None else None,
        gguf_digest=parts.gguf,
        gguf_bytes=parts.gguf_bytes,
        template=parts.jinja if parts.jinja is not None else parts.go_template,
        system=parts.system,
        params=parts.params,
        messages=parts.messages,
        license=parts.license,
        refused=parts.refused,
    )


def _take(parts: _Parts, layer: Layer, blobs: Path) -> None:
    """Add what one layer says; types we do not know are passed over."""
    kind = layer.media_type
    digest = parse_digest(layer.digest)
    if kind in REFUSED_TYPES:
        parts.refused = REFUSED_TYPES[kind]
    elif kind == MODEL_TYPE:
        if parts.gguf is not None:
            parts.refused = "more than one GGUF file"
        parts.gguf, parts.gguf_bytes = digest, layer.size
    elif kind in TEXT_TYPES:
        _take_text(parts, kind, _blob(layer, blobs))


def _take_text(parts: _Parts, kind: str, data: bytes) -> None:
    if kind == JINJA_TYPE:
        parts.jinja = data.decode()
    elif kind in (TEMPLATE_TYPE, OLD_TEMPLATE_TYPE):
        parts.go_template = data.decode()
    elif kind == SYSTEM_TYPE:
        parts.system = data.decode()
    elif kind == PARAMS_TYPE:
        parts.params = decode_params(data)
    elif kind == MESSAGES_TYPE:
        parts.messages = decode_messages(data)
    elif kind == LICENSE_TYPE:
        parts.license += (data.decode(),)


def _blob(layer: Layer, blobs: Path) -> bytes:
    return read_bounded(blobs / parse_digest(layer.digest).file_name, MAX_LAYER_BYTES)
