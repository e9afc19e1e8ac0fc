"""The web server: routes in OpenAI's form in front of a guarded model."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from safevlm import versions
from safevlm.files.text import short
from safevlm.serve.access import Gate, KeyCheck
from safevlm.serve.chat_api import Answering
from safevlm.serve.connection import while_connected
from safevlm.serve.deployment import DeployedKeys
from safevlm.serve.errors import NO_STORE, ApiError
from safevlm.serve.front import Front
from safevlm.serve.front_chat import add_front_chat
from safevlm.serve.front_responses import add_front_responses
from safevlm.serve.gateways import add_gateways
from safevlm.serve.guarded import GuardedModel
from safevlm.serve.moderations_api import add_moderations
from safevlm.serve.page.page import Page
from safevlm.serve.responses_api import add_responses
from safevlm.serve.strict_body import StrictRoute
from safevlm.serve.wire.chat import ChatBody

log = logging.getLogger(__name__)

CODES = {"extra_forbidden": "unknown_parameter", "not_supported": "not_supported"}
"""Of errors, by pydantic's types."""
PLACE = 200
"""Characters of a place that an error repeats."""


def create_app(
    model: GuardedModel, keys: KeyCheck | None = None, is_local: bool = True, page: Page | None = None
) -> FastAPI:
    """`keys`: who may ask; None: as the deployment says. `is_local`: requests must name a local host. `page`: beside
    the API, for people.

    The model is closed when the app is.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await model.aclose()

    app = FastAPI(title="SafeVLM", version=versions.VERSION, lifespan=lifespan, docs_url=None, redoc_url=None)
    let_in = keys or DeployedKeys(lambda: model.deployment)
    if page is not None:
        page.add_to(app, model, let_in)
    app.add_middleware(
        Gate,
        keys=let_in,
        limits=model.limits,
        is_local=is_local,
        refuse=error_response,
        has_own_door=page.covers if page is not None else lambda path: False,
    )
    app.router.route_class = StrictRoute
    app.add_exception_handler(ApiError, _told)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _broken)

    if isinstance(model, Front):
        add_front_chat(app, model)
        add_front_responses(app, model)
    else:
        add_chat(app, model)
        add_responses(app, model)
    add_moderations(app, model)
    add_gateways(app, model)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model.card()]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        if name != model.name:
            raise ApiError(404, f"no model {short(name)}; this server has {model.name!r}", code="model_not_found")
        return model.card()

    @app.get("/healthz", response_model=None)
    async def healthz() -> Response:
        trouble = model.trouble()
        told = {"status": "error" if trouble else "ok", "trouble": trouble, "configuration": model.health.configuration}
        told = {name: text for name, text in told.items() if text}
        return JSONResponse(told, 503 if trouble else 200)

    @app.get("/metrics", response_model=None)
    async def metrics() -> Response:
        return Response(model.metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return app


def add_chat(app: FastAPI, model: GuardedModel) -> None:
    """`POST /v1/chat/completions` of the model in this process."""

    @app.post("/v1/chat/completions", response_model=None)
    async def chat_completions(body: ChatBody, request: Request) -> Response:
        answering = await Answering.start(model, body)
        if body.stream:
            first = await while_connected(request, answering.first())
            return StreamingResponse(answering.events(first), media_type="text/event-stream", headers=NO_STORE)
        return JSONResponse(await while_connected(request, answering.whole()), headers=NO_STORE)


def error_response(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body, error.status, headers={**NO_STORE, **error.headers})


async def _told(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error)


async def _invalid(request: Request, error: Exception) -> Response:
    """The first thing that is wrong with a body, by its place."""
    assert isinstance(error, RequestValidationError)
    placed = [(place_of(fault, error.body), fault) for fault in error.errors()]
    place, fault = max(placed, key=lambda each: len(each[0]))  # of the readings of a value, the one that got furthest
    code = CODES.get(fault["type"], "invalid_value")
    message = str(fault["msg"]).removeprefix("Value error, ")
    if code == "unknown_parameter":
        message = "this server does not know it"
    param = param_of(place)[:PLACE] or fault.get("ctx", {}).get("param")
    told = f"{param}: {message}" if place else message
    return error_response(ApiError(400, told, param=param, code=code))


def place_of(fault: Mapping[str, Any], body: Any) -> tuple[str | int, ...]:
    """The steps from the body to what is wrong, without the names of readings (`list[…]`, a tag) among pydantic's."""
    location = fault["loc"][1:]
    steps: list[str | int] = []
    for step in location:
        if step in body if isinstance(body, dict) else isinstance(body, list) and isinstance(step, int):
            body = body[step]
            steps.append(step)
    return (*steps, location[-1]) if fault["type"] == "missing" and location else tuple(steps)


def param_of(place: Sequence[str | int]) -> str:
    """`("messages", 0, "content")` → `messages[0].content`."""
    said = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place)
    return said.removeprefix(".")


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, ApiError):  # raised while the body was read
        return error_response(error.__cause__)
    return error_response(ApiError(error.status_code, str(error.detail), headers=error.headers))


async def _broken(request: Request, error: Exception) -> Response:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return error_response(ApiError(500, "the request failed; the cause is in the server's log"))
