"""Model names, as users write them: `[scheme://][host[:port]/][namespace/]model[:tag]`.

Names come from strangers and become paths, so every part is checked against a small alphabet first; "." or
".." alone, blanks, slashes and NULs cannot be spelled.  Matching ignores case; the spelling on disk wins.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from actors.errors import RequestError

DEFAULT_HOST = "registry.ollama.ai"
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"
MAX_HOST = 350
MAX_PART = 80

_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]*")
_NAMESPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True, slots=True)
class ModelName:
    """A whole, valid model name.  Parts keep the case they were written in; compare with `key`."""

    host: str
    namespace: str
    model: str
    tag: str

    @property
    def full(self) -> str:
        """Every part: "registry.ollama.ai/library/llama3.2:1b"."""
        return f"{self.host}/{self.namespace}/{self.model}:{self.tag}"

    @property
    def display(self) -> str:
        """The shortest name that means the same, always with its tag: "llama3.2:1b"."""
        if self.host.lower() != DEFAULT_HOST:
            return self.full
        if self.namespace.lower() != DEFAULT_NAMESPACE:
            return f"{self.namespace}/{self.model}:{self.tag}"
        return f"{self.model}:{self.tag}"

    @property
    def key(self) -> str:
        """What is equal for names that mean the same model."""
        return self.full.lower()

    @property
    def parts(self) -> tuple[str, str, str, str]:
        """Host, namespace, model, tag: the four levels of the path under `manifests/`."""
        return (self.host, self.namespace, self.model, self.tag)

    def manifest_path(self, manifests: Path) -> Path:
        """Where this name's manifest lies; the parts are valid, so it lies under `manifests`."""
        return manifests.joinpath(*self.parts)


def parse_name(text: str) -> ModelName:
    """Read a name, filling the defaults; RequestError "invalid model name" when it is not one."""
    name = _split(text)
    if name is None or not is_valid(*name.parts):
        raise RequestError(
            "invalid model name",
            where="library.names",
            mend="write [host/][namespace/]model[:tag] with letters, digits, '.', '_' and '-'",
        )
    return name


def is_valid(host: str, namespace: str, model: str, tag: str) -> bool:
    """Whether these four parts make a name; what lies in a store is held to the same rules."""
    return (
        len(host) <= MAX_HOST
        and _HOST.fullmatch(host) is not None
        and len(namespace) <= MAX_PART
        and _NAMESPACE.fullmatch(namespace) is not None
        and all(len(part) <= MAX_PART and _PART.fullmatch(part) is not None for part in (model, tag))
    )


def _split(text: str) -> ModelName | None:
    """Take the text apart from the right; None when a part is promised (by its sign) but empty."""
    rest = text
    _, scheme, after = rest.partition("://")
    if scheme:
        rest = after
    tag = DEFAULT_TAG
    if rest.rfind(":") > rest.rfind("/"):
        rest, _, tag = rest.rpartition(":")
    rest, slash, model = rest.rpartition("/")
    if slash and not rest:
        return None
    host, slash, namespace = rest.rpartition("/")
    if slash and not (host and namespace):
        return None
    return ModelName(host or DEFAULT_HOST, namespace or DEFAULT_NAMESPACE, model, tag)
