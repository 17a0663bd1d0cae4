"""The settings by name: in the file, as variable, as flag of `runtime up`, and as Ollama's variable.

A setting's name is the key of `config.Config` without its unit.  Its own variable is RUNTIME_ and the name in
capitals, its flag is the name with dashes.  A parser gets the place a text comes from ("OLLAMA_HOST",
"--n-ctx"), so that the error about it can name that place.
"""

import re
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from actors.duration import DurationError, parse_duration
from actors.errors import ConfigError

DEFAULT_PORT: Final = 11434
KV_TYPES: Final = ("f16", "f32", "q8_0")
LIBRARIES: Final = ("cpu", "cuda", "rocm", "sim")
"""What devices are reached through."""

Parse = Callable[[str, str], object]


class Setting(msgspec.Struct, frozen=True):
    """One setting; `Config` has its type and its default."""

    key: str  # in Config and in the file
    parse: Parse
    metavar: str
    meaning: str
    default: str  # in words
    ollama: str = ""  # Ollama's variable for it: a fall-back for ours
    parse_ollama: Parse | None = None  # where Ollama's texts differ from ours
    name: str = ""  # "": the key without its unit

    @property
    def plain_name(self) -> str:
        """What variable and flag are made of."""
        return self.name or self.key.removesuffix("_s").removesuffix("_bytes")

    @property
    def variable(self) -> str:
        """Our own environment variable."""
        return f"RUNTIME_{self.plain_name.upper()}"

    @property
    def flag(self) -> str:
        """The flag of `runtime up`."""
        return "--" + self.plain_name.replace("_", "-")

    @property
    def names(self) -> str:
        """The variables that set it, for help."""
        return f"{self.variable}, {self.ollama}" if self.ollama else self.variable


class HostAddress(msgspec.Struct, frozen=True):
    """What OLLAMA_HOST says."""

    scheme: str
    host: str  # no brackets; "": every interface
    port: int
    path: str  # "" or begins with "/"

    @property
    def url(self) -> str:
        """As a client reaches it: every interface is reached at this machine's own."""
        host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        shown = f"[{host}]" if ":" in host else host
        return f"{self.scheme}://{shown}:{self.port}{self.path}"


def parse_host(text: str, key: str = "OLLAMA_HOST") -> HostAddress:
    """OLLAMA_HOST's grammar: [scheme://][host][:port][/path]; no scheme: port 11434, http: 80, https: 443."""
    scheme, has_scheme, rest = text.partition("://")
    if not has_scheme:
        scheme, rest = "http", text
    if scheme not in ("http", "https"):
        raise bad_value(key, text, "the scheme is http or https")
    default_port = {"http": 80, "https": 443}[scheme] if has_scheme else DEFAULT_PORT
    authority, _, path = rest.partition("/")
    host, port_text = _split_port(authority, key)
    port = default_port
    if port_text:
        if not (port_text.isascii() and port_text.isdigit() and int(port_text) <= 65535):
            raise bad_value(key, text, "the port is a number up to 65535")
        port = int(port_text)
    if not authority:
        host = "127.0.0.1"
    return HostAddress(scheme, host, port, f"/{path}" if path else "")


def _split_port(authority: str, key: str) -> tuple[str, str]:
    if authority.startswith("["):
        host, bracket, rest = authority[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise bad_value(key, authority, "an IPv6 address is written [::1] or [::1]:11434")
        return host, rest[1:]
    if authority.count(":") > 1:
        return authority, ""  # a bare IPv6 address
    host, _, port = authority.partition(":")
    return host, port


def bad_value(place: str, value: object, expected: str) -> ConfigError:
    """The fault that stops the start; names where the value was found."""
    return ConfigError(f'{place} is "{value}": {expected}', where=place, mend="mend it or unset it")


def clean(text: str) -> str:
    """Without blanks and quotes around it: documentation quotes values, and people copy the quotes."""
    return text.strip().strip("\"'").strip()


def seconds(place: str, value: str | float) -> float:
    """A span of time; a number is seconds already."""
    try:
        return parse_duration(value)
    except DurationError as exc:
        raise bad_value(place, value, 'expected seconds or a span like "5m"') from exc


def some_seconds(place: str, value: str | float) -> float:
    """A span of time above zero."""
    if (span_s := seconds(place, value)) <= 0:
        raise bad_value(place, value, "expected more than no time")
    return span_s


_UNITS: Final = {"": 0, "b": 0, "k": 10, "kib": 10, "m": 20, "mib": 20, "g": 30, "gib": 30}
_MAX_BYTES: Final = 1 << 62  # so that sums of it still are 64 bits wide


def n_bytes(place: str, value: str | int) -> int:
    """A number of bytes, or one with KiB, MiB or GiB behind it."""
    match = re.fullmatch(r"([0-9]{1,19}) ?([a-z]*)", str(value).lower(), re.ASCII)
    if match is None or match[2] not in _UNITS or (size := int(match[1]) << _UNITS[match[2]]) > _MAX_BYTES:
        raise bad_value(place, value, 'expected bytes, or a size like "512MiB"')
    return size


def some_bytes(place: str, value: str | int) -> int:
    """A number of bytes above zero."""
    if (size := n_bytes(place, value)) == 0:
        raise bad_value(place, value, "expected more than nothing")
    return size


def _text(_place: str, value: str) -> str:
    return value


def _address(place: str, value: str) -> HostAddress:
    return parse_host(value, place)


def _whole(low: int) -> Parse:
    def parse(place: str, value: str) -> int:
        if not (value.isascii() and value.isdigit() and low <= int(value) < 1 << 31):
            raise bad_value(place, value, f"expected a whole number, {low} or more")
        return int(value)

    return parse


def _one_of(*allowed: str) -> Parse:
    def parse(place: str, value: str) -> str:
        if value.lower() not in allowed:
            raise bad_value(place, value, f"expected one of {', '.join(allowed)}")
        return value.lower()

    return parse


def _names(_place: str, value: str) -> tuple[str, ...]:
    return tuple(name for part in value.split(",") if (name := part.strip()))


_TRUTHS: Final = {
    **dict.fromkeys(("1", "t", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "f", "false", "no", "off"), False),
}


def _truth(place: str, value: str) -> bool:
    if value.lower() not in _TRUTHS:
        # Ollama takes every text for true; "flase" should not switch anything on
        raise bad_value(place, value, "expected 1 or 0, true or false")
    return _TRUTHS[value.lower()]


def _debug_level(place: str, value: str) -> str:
    if value == "2":
        return "debug"
    if value.lower() not in _TRUTHS:
        raise bad_value(place, value, "expected 0, 1 or 2")
    return "debug" if _TRUTHS[value.lower()] else "info"


def _variant(place: str, value: str) -> str:
    """Ollama names variants of a library: cuda_v12, rocm_v6, cpu_avx2."""
    library = value.lower().partition("_")[0]
    if library not in LIBRARIES:
        raise bad_value(place, value, f"expected one of {', '.join(LIBRARIES)}")
    return library


SETTINGS: Final = (
    Setting("host", _address, "HOST[:PORT]", "Where to serve HTTP", "127.0.0.1:11434", "OLLAMA_HOST"),
    Setting("models_dir", _text, "FOLDER", "The model library", "~/.ollama/models", "OLLAMA_MODELS"),
    Setting("keep_alive_s", seconds, "SPAN", "How long models stay loaded", "5m", "OLLAMA_KEEP_ALIVE"),
    Setting("load_timeout_s", seconds, "SPAN", "A load without progress ends", "5m", "OLLAMA_LOAD_TIMEOUT"),
    Setting("n_ctx", _whole(0), "N", "Positions one sequence may use", "what fits", "OLLAMA_CONTEXT_LENGTH"),
    Setting("n_parallel", _whole(1), "N", "Sequences of one model at once", "4", "OLLAMA_NUM_PARALLEL"),
    Setting("n_batch", _whole(1), "N", "Inputs in one forward pass", "512"),
    Setting(
        "stream_from", _whole(0), "N", "Inputs from which GPUs compute the host's layers; 0: as measured", "0"
    ),
    Setting("max_loaded", _whole(0), "N", "Models in memory", "three per device", "OLLAMA_MAX_LOADED_MODELS"),
    Setting("max_queue", _whole(1), "N", "Requests that may wait", "512", "OLLAMA_MAX_QUEUE"),
    Setting("truncate", _truth, "YES", "Cut prompts that do not fit, or answer 400", "yes"),
    Setting("max_repetition", _whole(0), "N", "Tokens of a loop before it is ended; 0: never", "1024"),
    Setting("kv_type", _one_of(*KV_TYPES), "TYPE", ", ".join(KV_TYPES), "f16", "OLLAMA_KV_CACHE_TYPE"),
    Setting(
        "gpu_overhead_bytes", n_bytes, "SIZE", "Kept free on every GPU besides", "0", "OLLAMA_GPU_OVERHEAD"
    ),
    Setting("sched_spread", _truth, "YES", "Spread models over all GPUs", "no", "OLLAMA_SCHED_SPREAD"),
    Setting(
        "library",
        _one_of(*LIBRARIES),
        "NAME",
        "The one library whose devices are used beside the host",
        "all",
        "OLLAMA_LLM_LIBRARY",
        _variant,
    ),
    Setting("probe_timeout_s", some_seconds, "SPAN", "A look for devices that takes longer fails", "30s"),
    Setting("sim_dir", _text, "FOLDER", "A simulated machine, for tests", "none", name="sim"),
    Setting("n_thread", _whole(0), "N", "Threads of a model", "one per core"),
    Setting("cpu_isa", _text, "NAME", "Forces an instruction set", "the best there is"),
    Setting("origins", _names, "LIST", "More web origins, with commas", "none", "OLLAMA_ORIGINS"),
    Setting("max_body_bytes", some_bytes, "SIZE", "Of an HTTP request", "64MiB"),
    Setting("run_dir", _text, "FOLDER", "Where the sockets are", "a folder of the user's"),
    Setting("group", _text, "NAME", "This group may use the sockets, too", "none"),
    Setting(
        "log_level",
        _one_of("debug", "info", "warning", "error"),
        "LEVEL",
        "debug, info, warning or error",
        "info",
        "OLLAMA_DEBUG",
        _debug_level,
    ),
    Setting("log_format", _one_of("text", "json"), "FORMAT", "text or json", "text"),
)

NO_EFFECT: Final[Mapping[str, str]] = {
    # variables of Ollama's that decide nothing here, and why
    "OLLAMA_FLASH_ATTENTION": "attention is always fused",
    "OLLAMA_MULTIUSER_CACHE": "sequences always share the pages of an equal beginning",
    "OLLAMA_NEW_ENGINE": "there is one engine",
    "OLLAMA_VULKAN": "there is no Vulkan backend",
    "OLLAMA_DEBUG_LOG_REQUESTS": "requests are not written to files",
    "OLLAMA_NOHISTORY": "a terminal chat always keeps its history",
    "OLLAMA_NOPRUNE": "no unused files are removed at start",
    "OLLAMA_REMOTES": "there are no remote models",
    "OLLAMA_NO_CLOUD": "there is no cloud",
}

VISIBILITY: Final[Mapping[str, str]] = {
    # variables of the vendors' that decide which devices a process sees, obeyed and reported
    "CUDA_VISIBLE_DEVICES": "NVIDIA GPUs that programs may see; AMD's runtime obeys it, too",
    "CUDA_DEVICE_ORDER": "how CUDA_VISIBLE_DEVICES counts NVIDIA GPUs",
    "ROCR_VISIBLE_DEVICES": "AMD GPUs that programs may see",
    "HIP_VISIBLE_DEVICES": "AMD GPUs that programs may see, counted among those",
    "GPU_DEVICE_ORDINAL": "AMD GPUs that programs may see",
    "HSA_OVERRIDE_GFX_VERSION": "AMD GPUs pass themselves off as this architecture",
}
