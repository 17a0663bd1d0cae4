"""Who may ask: the Host check against DNS rebinding, and the Origin rules for web pages.

Anyone's web page can make a browser send requests to 127.0.0.1.  A page is told apart by its Origin; a page
that had its own name point at 127.0.0.1 (rebinding) by the Host it then must send.
"""

import ipaddress
import re
import socket
from collections.abc import Iterable, Mapping

import trio
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from actors.gateway.draining import take_rest, wait_gone

LOCAL_NAMES = ("localhost", "127.0.0.1", "0.0.0.0", "[::1]")
APP_SCHEMES = (
    "app",
    "file",
    "tauri",
    "vscode-webview",
    "vscode-file",
    "chrome-extension",
    "moz-extension",
    "safari-web-extension",
)
HOST_SUFFIXES = (".localhost", ".local", ".internal")
ALLOWED_METHODS = "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"
ALLOWED_HEADERS = ",".join(
    (
        "Authorization",
        "Content-Type",
        "User-Agent",
        "Accept",
        "X-Requested-With",
        "OpenAI-Beta",
        *(
            f"x-stainless-{what}"
            for what in (
                "arch",
                "async",
                "custom-poll-interval",
                "helper-method",
                "lang",
                "os",
                "package-version",
                "poll-helper",
                "retry-count",
                "runtime",
                "runtime-version",
                "timeout",
            )
        ),
    )
)
PREFLIGHT_AGE_S = 12 * 3600


class HostRule:
    """Which Host headers are answered.  Only a server that listens on loopback alone looks at them."""

    def __init__(self, bound_to: str) -> None:
        self._is_loopback = bound_to == "localhost" or _is_loopback(bound_to)
        self._names = {"", "localhost", socket.gethostname().lower()}

    def allows(self, host: str) -> bool:
        """Whether a request with this Host header (its port included) is meant for us."""
        if not self._is_loopback:
            return True
        name = _without_port(host).lower().rstrip(".")
        if name in self._names or name.endswith(HOST_SUFFIXES):
            return True
        try:
            address = ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return address.is_loopback or address.is_private or address.is_unspecified or _is_ours(address)


class OriginRule:
    """Which web pages may ask.  `extra` are OLLAMA_ORIGINS: exact origins, or patterns with "*"."""

    def __init__(self, extra: Iterable[str]) -> None:
        patterns = [
            f"{scheme}://{name}{port}"
            for scheme in ("http", "https")
            for name in LOCAL_NAMES
            for port in ("", ":*")
        ]
        patterns += [f"{scheme}://*" for scheme in APP_SCHEMES]
        patterns += [origin.strip().rstrip("/") for origin in extra if origin.strip()]
        self._allows_all = "*" in patterns
        self._pattern = re.compile(
            "|".join(".*".join(map(re.escape, p.lower().split("*"))) for p in patterns)
        )

    def allows(self, origin: str, host: str) -> bool:
        """Whether a page of this origin may ask a server that it reached as `host`."""
        origin = origin.lower()
        is_same = origin in (f"http://{host.lower()}", f"https://{host.lower()}")
        return self._allows_all or is_same or self._pattern.fullmatch(origin) is not None


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.rpartition(":")[0] if host.count(":") == 1 else host


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _is_ours(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether an interface of this machine has the address: only then can a socket be bound to it."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
    except OSError:
        return False
    return True


class Refusal(PlainTextResponse):
    """An answer that does not look at the request's body, but takes it all the same."""

    def __init__(self, status: int, text: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(text, status_code=status, headers=dict(headers or {}))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        await take_rest(receive)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_gone, receive)
            await super().__call__(scope, receive, send)
            nursery.cancel_scope.cancel()


class Guard:
    """ASGI middleware: 403 with an empty body for what the rules refuse, CORS headers for what they allow."""

    def __init__(self, app: ASGIApp, hosts: HostRule, origins: OriginRule) -> None:
        self._app = app
        self._hosts = hosts
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})
            return
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin", "")
        if not self._hosts.allows(host) or (origin and not self._origins.allows(origin, host)):
            await Refusal(403)(scope, receive, send)
        elif not origin:
            await self._app(scope, receive, send)
        elif scope["method"] == "OPTIONS":
            await Refusal(204, headers=_cors(origin) | _preflight())(scope, receive, send)
        else:
            await self._app(scope, receive, _with_headers(send, _cors(origin)))


def _cors(origin: str) -> dict[str, str]:
    return {"access-control-allow-origin": origin, "vary": "Origin"}


def _preflight() -> dict[str, str]:
    return {
        "access-control-allow-methods": ALLOWED_METHODS,
        "access-control-allow-headers": ALLOWED_HEADERS,
        "access-control-max-age": str(PREFLIGHT_AGE_S),
    }


def _encoded(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in headers.items()]


def _with_headers(send: Send, headers: dict[str, str]) -> Send:
    async def send_with(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *_encoded(headers)]}
        await send(message)

    return send_with
