"""One model of the library, as read from its manifest and small layers."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from actors.errors import ModelError, Unsupported
from actors.gateway.library.digest import Digest
from actors.gateway.library.manifest import Config, Manifest, Message, OptionValue
from actors.gateway.library.names import ModelName
from actors.protocol import ModelInfo, ModelSpec


@dataclass(frozen=True, slots=True)
class Contents:
    """What a manifest and its small layers say; the same manifest bytes always say the same."""

    digest: Digest  # of the manifest's bytes
    size_bytes: int  # of all layers and the config
    config: Config
    manifest: Manifest
    data: bytes  # of the manifest file
    gguf: Path | None  # None: not a GGUF model (safetensors, or served by someone else)
    gguf_digest: Digest | None
    gguf_bytes: int
    template: str | None  # the raw TEMPLATE layer: Jinja, or Go in models made by Ollama
    system: str
    params: Mapping[str, OptionValue]
    messages: tuple[Message, ...]
    license: tuple[str, ...]
    refused: str = ""  # a layer this runtime cannot use, by name


@dataclass(frozen=True, slots=True)
class Entry:
    """A model by name.  `is_builtin`: it comes with the runtime, and is not in the user's store."""

    name: ModelName
    modified_at: datetime  # aware, UTC
    contents: Contents
    inspect: Callable[["Entry"], Awaitable[ModelInfo]]
    is_builtin: bool = False

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest's bytes in hex, no prefix; its first 12 digits are the ID users see."""
        return self.contents.digest.hex

    @property
    def size_bytes(self) -> int:
        """Bytes of all layers."""
        return self.contents.size_bytes

    @property
    def config(self) -> Config:
        """Format, family, families, model_type ("8.0B"), file_type ("Q4_K_M"), context_length."""
        return self.contents.config

    @property
    def params(self) -> Mapping[str, OptionValue]:
        """PARAMETERs by name; `stop` is a list."""
        return self.contents.params

    @property
    def system(self) -> str:
        """SYSTEM, or ""."""
        return self.contents.system

    @property
    def template(self) -> str | None:
        """The raw TEMPLATE layer, if there is one."""
        return self.contents.template

    @property
    def messages(self) -> tuple[Message, ...]:
        """MESSAGEs: turns that come before the user's."""
        return self.contents.messages

    @property
    def license(self) -> tuple[str, ...]:
        """LICENSE texts."""
        return self.contents.license

    def spec(self) -> ModelSpec:
        """What the scheduler and the runner need; Unsupported names a layer that cannot be served."""
        contents = self.contents
        if contents.refused:
            raise Unsupported(
                f"{self.name.display} has {contents.refused}, which this runtime cannot serve",
                where="library",
                mend="create the model from a plain GGUF file",
            )
        if contents.gguf is None or contents.gguf_digest is None:
            raise Unsupported(
                f"{self.name.display} has no GGUF file (its format is {self.config.model_format!r})",
                where="library",
                mend="create the model from a GGUF file",
            )
        if not contents.gguf.is_file() or contents.gguf.stat().st_size != contents.gguf_bytes:
            raise ModelError(
                f"{self.name.display} lacks its blob {contents.gguf.name} of {contents.gguf_bytes} bytes",
                where=str(contents.gguf.parent),
                mend="create or pull the model again",
            )
        return ModelSpec(
            name=self.name.display,
            digest=str(contents.gguf_digest),
            path=str(contents.gguf),
            size_bytes=contents.gguf_bytes,
        )

    async def info(self) -> ModelInfo:
        """What the GGUF file says of itself, read by a short-lived process once and kept by digest."""
        return await self.inspect(self)
