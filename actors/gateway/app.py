"""Routes: which path is answered by which handler, in which dialect."""

from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from actors.errors import Unsupported
from actors.gateway.dialect import NATIVE, OPENAI, Dialect
from actors.gateway.exchange import Endpoint, Exchange, Handler
from actors.gateway.guard import Guard, HostRule, OriginRule, Refusal
from actors.gateway.health import Health
from actors.gateway.management import OllamaModels
from actors.gateway.metrics import Metrics
from actors.gateway.ollama import OllamaAnswers
from actors.gateway.openai import OpenAIAnswers

NOT_YET = ("/api/embed", "/api/embeddings", "/api/pull", "/api/push")
OPENAI_NOT_YET = ("/v1/embeddings", "/v1/responses", "/v1/messages", "/v1/audio/transcriptions")
VERSION = "0.1.0"  # of the API: clients ask it before they use what is new


@dataclass(frozen=True, slots=True)
class Handlers:
    """Everything that answers."""

    answers: OllamaAnswers
    models: OllamaModels
    openai: OpenAIAnswers
    health: Health


def make_app(
    handlers: Handlers, metrics: Metrics, hosts: HostRule, origins: OriginRule, max_body_bytes: int
) -> Starlette:
    """The application that a server serves."""

    def route(
        methods: str, path: str, handler: Handler, dialect: Dialect = NATIVE, *, loads_body: bool = True
    ) -> Route:
        endpoint = Endpoint(
            handler,
            name=path,
            metrics=metrics,
            max_body_bytes=max_body_bytes,
            dialect=dialect,
            loads_body=loads_body,
        )
        return Route(path, endpoint, methods=methods.split())

    answers, models, openai, health = handlers.answers, handlers.models, handlers.openai, handlers.health
    blob = "/api/blobs/{digest}"
    routes = [
        route("GET", "/", _root),
        route("GET", "/api/version", _version),
        route("GET", "/api/tags", models.tags),
        route("GET", "/api/ps", models.running),
        route("POST", "/api/show", models.show),
        route("POST", "/api/generate", answers.generate),
        route("POST", "/api/chat", answers.chat),
        route("POST", "/api/create", models.create),
        route("POST", "/api/copy", models.copy),
        route("DELETE", "/api/delete", models.delete),
        route("HEAD", blob, models.has_blob),
        route("POST", blob, models.upload, loads_body=False),
        route("GET", "/v1/models", openai.models, OPENAI),
        route("GET", "/v1/models/{model:path}", openai.model, OPENAI),
        route("POST", "/v1/chat/completions", openai.chat, OPENAI),
        route("POST", "/v1/completions", openai.complete, OPENAI),
        *(route("POST", path, _not_yet, NATIVE) for path in NOT_YET),
        *(route("POST", path, _not_yet, OPENAI) for path in OPENAI_NOT_YET),
        route("GET", "/metrics", health.metrics),
        route("GET", "/health", health.ready),
        route("GET", "/livez", health.live),
        route("GET", "/readyz", health.ready),
    ]
    app = Starlette(
        routes=routes,
        exception_handlers={HTTPException: _plain},
        middleware=[Middleware(Guard, hosts=hosts, origins=origins)],
    )
    app.router.redirect_slashes = False
    return app


class NotYet(Unsupported):
    """An endpoint that clients know and this runtime does not have yet: said by name, not by a bare 404."""

    http_status = 501


async def _not_yet(exchange: Exchange) -> None:
    path = exchange.request.url.path
    raise NotYet(f"{path} is not supported yet", where="gateway", mend="see the README for what is")


async def _root(exchange: Exchange) -> None:
    await exchange.reply_text("Ollama is running")


async def _version(exchange: Exchange) -> None:
    await exchange.reply({"version": VERSION})


async def _plain(_request: Request, exc: Exception) -> Response:
    """Unknown paths and wrong verbs."""
    assert isinstance(exc, HTTPException)
    text = {404: "404 page not found", 405: "405 method not allowed"}.get(exc.status_code, exc.detail)
    return Refusal(exc.status_code, text, exc.headers)
