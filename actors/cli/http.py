"""The command line's HTTP client: Ollama's API, with errors as RuntimeFaults."""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec

from actors.errors import ModelNotFound, PeerGone, QueueFull, RequestError, RuntimeFault

CONNECT_S = 5.0
ANSWER_S = 60.0  # for what is not a generation: the server answers these without waiting for a model
CHUNK_BYTES = 1 << 20
MEND = "see its log, and 'runtime ps'"

Json = Any  # what the server sent, decoded; read by key and checked where it is used

_KINDS: dict[int, type[RuntimeFault]] = {400: RequestError, 404: ModelNotFound, 503: QueueFull}


class Http:
    """One server.  Every method raises PeerGone when it cannot be reached."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._client = httpx.Client(
            base_url=url,
            timeout=httpx.Timeout(ANSWER_S, connect=CONNECT_S),
            # the address is the user's own setting; proxies are for the rest of the world
            trust_env=False,
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def is_up(self) -> bool:
        """Whether something answers there."""
        try:
            return self._client.get("/api/version", timeout=CONNECT_S).is_success
        except httpx.TransportError:
            return False

    def get(self, path: str) -> Json:
        """GET, decoded."""
        return self._ask("GET", path)

    def post(self, path: str, body: object, *, timeout_s: float | None = ANSWER_S) -> Json:
        """POST, decoded; None for an empty answer."""
        return self._ask("POST", path, body, timeout_s=timeout_s)

    def delete(self, path: str, body: object) -> None:
        """DELETE with a body."""
        self._ask("DELETE", path, body)

    def stream(self, path: str, body: object) -> Generator[Json]:
        """POST, and the lines of the answer as they come; closing the iterator stops the server's work.

        A line with "error" is raised.  There is no time limit between lines: the server has its own.
        """
        with self._errors():
            timeout = httpx.Timeout(None, connect=CONNECT_S)
            with self._client.stream("POST", path, json=body, timeout=timeout) as response:
                if not response.is_success:
                    response.read()
                    raise _fault(response)
                for line in response.iter_lines():
                    if not line:
                        continue
                    item = _decode(line.encode())
                    if isinstance(item, dict) and "error" in item:
                        raise RuntimeFault(str(item["error"]), where=self.url)  # pyright: ignore[reportUnknownArgumentType]  # JSON
                    yield item

    def has_blob(self, digest: str) -> bool:
        """Whether the server has this blob."""
        with self._errors():
            response = self._client.head(f"/api/blobs/{digest}")
        return response.is_success

    def upload(self, digest: str, file: Path, sent: Callable[[int], None]) -> None:
        """Upload a file as a blob; `sent` is told the size of each piece that is on its way."""

        def pieces() -> Iterator[bytes]:
            with file.open("rb") as stream:
                while piece := stream.read(CHUNK_BYTES):
                    yield piece
                    sent(len(piece))

        with self._errors():
            timeout = httpx.Timeout(None, connect=CONNECT_S)
            headers = {"Content-Length": str(file.stat().st_size)}
            response = self._client.post(
                f"/api/blobs/{digest}", content=pieces(), headers=headers, timeout=timeout
            )
        if not response.is_success:
            raise _fault(response)

    def _ask(self, verb: str, path: str, body: object = None, *, timeout_s: float | None = ANSWER_S) -> Json:
        with self._errors():
            timeout = httpx.Timeout(timeout_s, connect=CONNECT_S)
            response = self._client.request(verb, path, json=body, timeout=timeout)
        if not response.is_success:
            raise _fault(response)
        return _decode(response.content) if response.content else None

    @contextmanager
    def _errors(self) -> Generator[None]:
        """Translate httpx's errors."""
        try:
            yield
        except httpx.ConnectError as exc:
            raise PeerGone(
                f"could not connect to the runtime at {self.url}",
                where="cli",
                mend="start it with 'runtime up'",
            ) from exc
        except httpx.TimeoutException as exc:
            raise PeerGone(f"the runtime at {self.url} does not answer", where="cli", mend=MEND) from exc
        except httpx.TransportError as exc:
            raise PeerGone(f"lost the runtime at {self.url}: {exc}", where="cli", mend=MEND) from exc


def _decode(data: bytes) -> Json:
    try:
        return msgspec.json.decode(data)
    except msgspec.DecodeError as exc:
        raise RuntimeFault(
            f"the server's answer is not JSON: {data[:60]!r}", where="cli", mend="check OLLAMA_HOST"
        ) from exc


def _fault(response: httpx.Response) -> RuntimeFault:
    """The error an answer tells of, of the kind its status means."""
    try:
        body: Json = msgspec.json.decode(response.content)
        text = str(body["error"])
    except (msgspec.DecodeError, KeyError, TypeError):
        text = f"{response.status_code} {response.reason_phrase}"
    kind = _KINDS.get(response.status_code, RuntimeFault)
    mend = "see 'runtime list'" if kind is ModelNotFound and "not found" in text and ";" not in text else ""
    return kind(text, where=str(response.url), mend=mend)
