"""The files of Ollama's model store: manifests, config blobs, layer types.

Format: Docker image manifest v2 with Ollama's own layer media types.  Fields we do not know are left alone.
"""

from typing import Annotated, Literal

import msgspec

from actors.gateway.library.digest import Digest

MAX_MANIFEST_BYTES = 4 << 20  # a safetensors model has one layer per tensor: hundreds, of 200 bytes each
MAX_LAYER_BYTES = 8 << 20  # of the layers read into memory: templates, texts, parameters

MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"

_PREFIX = "application/vnd.ollama.image."
MODEL_TYPE = _PREFIX + "model"
TEMPLATE_TYPE = _PREFIX + "template"
OLD_TEMPLATE_TYPE = _PREFIX + "prompt"
SYSTEM_TYPE = _PREFIX + "system"
PARAMS_TYPE = _PREFIX + "params"
MESSAGES_TYPE = _PREFIX + "messages"
LICENSE_TYPE = _PREFIX + "license"
# A type of our own, as Ollama reads its `template` layers as Go text; it passes over types it does not know
JINJA_TYPE = "application/vnd.actor-runtime.template.jinja"

TEXT_TYPES = frozenset(
    {TEMPLATE_TYPE, OLD_TEMPLATE_TYPE, JINJA_TYPE, SYSTEM_TYPE, PARAMS_TYPE, MESSAGES_TYPE, LICENSE_TYPE}
)
# Layers without which the model would be another one: serving it anyway would be wrong
REFUSED_TYPES = {
    _PREFIX + "adapter": "a LoRA adapter layer",
    _PREFIX + "draft": "a draft model layer",
    _PREFIX + "tensor": "safetensors layers",
}

Size = Annotated[int, msgspec.Meta(ge=0)]
OptionValue = bool | int | float | str | list[str]


class Layer(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """One blob of a model and what it is for."""

    media_type: str
    digest: str
    size: Size
    name: str = ""


class Manifest(msgspec.Struct, frozen=True, rename="camel"):
    """A model: its config blob and its layers."""

    config: Layer
    layers: tuple[Layer, ...]
    schema_version: Literal[2] = 2
    media_type: str = MANIFEST_TYPE


class RootFs(msgspec.Struct, frozen=True):
    """What Docker's image format wants in a config blob."""

    type: str = "layers"
    diff_ids: tuple[str, ...] = ()


class Config(msgspec.Struct, frozen=True):
    """The config blob: what lists show of a model without opening its file."""

    model_format: str = ""
    model_family: str = ""
    model_families: tuple[str, ...] | None = None
    model_type: str = ""  # number of parameters in words: "8.0B"
    file_type: str = ""  # "Q4_K_M"
    context_length: int = 0
    embedding_length: int = 0
    remote_host: str = ""  # the model is served by someone else
    remote_model: str = ""
    architecture: str = "amd64"
    os: str = "linux"
    rootfs: RootFs = RootFs()

    @property
    def families(self) -> tuple[str, ...]:
        """All families, at least the first."""
        return self.model_families or ((self.model_family,) if self.model_family else ())


class Message(msgspec.Struct, frozen=True):
    """A turn of the conversation a model brings along (MESSAGE in a Modelfile)."""

    role: str
    content: str


_manifests = msgspec.json.Decoder(Manifest)
_configs = msgspec.json.Decoder(Config)
_params = msgspec.json.Decoder(dict[str, OptionValue | None])
_messages = msgspec.json.Decoder(list[Message])


def decode_manifest(data: bytes) -> Manifest:
    """msgspec.DecodeError when it is not a manifest."""
    return _manifests.decode(data)


def decode_config(data: bytes) -> Config:
    """msgspec.DecodeError when it is not a config."""
    return _configs.decode(data)


def decode_params(data: bytes) -> dict[str, OptionValue]:
    """The parameters, without those that are null; msgspec.DecodeError when they are no parameters."""
    return {name: value for name, value in _params.decode(data).items() if value is not None}


def decode_messages(data: bytes) -> tuple[Message, ...]:
    """msgspec.DecodeError when they are no messages."""
    return tuple(_messages.decode(data))


def make_layer(media_type: str, digest: Digest, size: int) -> Layer:
    """A layer that points at a blob."""
    return Layer(media_type=media_type, digest=str(digest), size=size)
