"""The gateway actor: HTTP in, protocol out; and the model library over the socket protocol."""

import socket
from pathlib import Path

import trio

from actors.actor import not_understood
from actors.config import Config
from actors.errors import RuntimeFault, Unsupported
from actors.gateway.app import Handlers, make_app
from actors.gateway.completion import Completions
from actors.gateway.generation import Generator
from actors.gateway.guard import HostRule, OriginRule
from actors.gateway.health import Health
from actors.gateway.http_server import HttpServer
from actors.gateway.leases import Leases
from actors.gateway.library.store import Library
from actors.gateway.links import Links
from actors.gateway.management import OllamaModels
from actors.gateway.metrics import Metrics
from actors.gateway.ollama import OllamaAnswers
from actors.gateway.openai import OpenAIAnswers
from actors.gateway.peers import Peers
from actors.gateway.templates.chat import ChatRenderer
from actors.inherited import bind_tcp, take_socket
from actors.link import Replies
from actors.protocol import Inspect, ListModels, ModelInfo, Models, ModelSpec, Request, Resolve

INSPECT_S = 30.0  # a process starts and reads a header: a second on a slow disk
HOST_S = 6.0  # the supervisor brings a dead runner host back within 5 s
MEASURED = ("scheduler", "discovery", "host")  # whose gauges /metrics gives beside our own
HTTP = "http"  # the name under which the supervisor hands the listening socket down


class Gateway:
    """The service.  `listener`: an already listening TCP socket, for those who have one."""

    def __init__(self, config: Config, listener: socket.socket | None = None) -> None:
        self._config = config
        self._metrics = Metrics()
        self._renderer = ChatRenderer()
        self._library = Library(Path(config.models_dir), self._inspect, check_template=self._renderer.check)
        self._listener = listener
        self._links: Links | None = None
        self._server: HttpServer | None = None

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Serve HTTP until cancelled; started() when it is served."""
        config = self._config
        sock = self._listener or take_socket(HTTP) or bind_tcp(config.host, config.port)
        hosts = HostRule(str(sock.getsockname()[0]))
        async with trio.open_nursery() as nursery:
            links = self._links = Links(nursery, "gateway")
            leases = Leases(nursery, links, config.socket_address("scheduler"))
            peers = Peers(links, {name: config.socket_address(name) for name in MEASURED})
            completions = Completions(links, leases, self._metrics, config.max_repetition)
            generator = Generator(
                self._library, self._renderer, completions, self._metrics, may_truncate=config.truncate
            )
            handlers = Handlers(
                answers=OllamaAnswers(generator, leases),
                models=OllamaModels(self._library, leases),
                openai=OpenAIAnswers(generator, self._library),
                health=Health(self._metrics, leases, peers),
            )
            app = make_app(handlers, self._metrics, hosts, OriginRule(config.origins), config.max_body_bytes)
            server = self._server = HttpServer(app)
            await nursery.start(self._renderer.run)
            await nursery.start(server.serve, sock)
            task_status.started()
            await self._library.warm()  # others wait for it only if they come before it has ended

    async def drain(self) -> None:
        """Accept nothing new and finish what has begun."""
        if self._server is not None:
            await self._server.drain()

    async def handle(self, request: Request, replies: Replies) -> None:
        """Answer about the library."""
        match request:
            case Resolve():
                await replies.send((await self._library.find(request.name)).spec())
            case ListModels():
                await replies.send(Models(tuple(await self._specs())))
            case _:
                raise not_understood(request)

    def gauges(self) -> dict[str, float]:
        """Counters for Stats."""
        n_connections = self._server.n_connections if self._server is not None else 0
        return {**self._metrics.gauges(), "http_connections": n_connections}

    async def _specs(self) -> list[ModelSpec]:
        specs: list[ModelSpec] = []
        for entry in await self._library.list():
            try:
                specs.append(entry.spec())
            except Unsupported:
                continue  # listed by /api/tags, but nothing the scheduler could load
        return specs

    async def _inspect(self, path: str) -> ModelInfo:
        if self._links is None:
            raise RuntimeFault("the gateway is not up yet", where="gateway")
        with trio.move_on_after(INSPECT_S):
            return await self._links.insist(
                self._config.socket_address("host"),
                lambda link: link.ask(Inspect(path=path), ModelInfo),
                patience_s=HOST_S,
            )
        raise RuntimeFault(f"{path} was not read within {INSPECT_S:.0f} s", where="gateway.inspect")
