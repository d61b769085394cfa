"""The HTTP side of the Ray Serve application: TorchServe's paths and bodies, and OpenAI's.

```
POST /predictions/clip_image | clip_text | clip_similarity       as TorchServe, see clipserve.wire.native
POST /predictions/v1/embeddings                                  the same, see clipserve.wire.openai
GET  the same paths                                              what that endpoint takes, which model it has
GET  /openapi.json                                               what there is, for programs; no token
GET  /ping                                                       is every endpoint answering?
GET  /models/NAME                                                workers, encoder specs (management token)
POST /v1/embeddings, GET /v1/models, GET /v1/models/ID           as OpenAI
```

It checks tokens and sizes, makes a `Row` of a request and sends it to the endpoint's replicas; everything
else about a body is theirs.
"""

# Ray Serve pickles the routes of `Ingress` by value while this module is being imported. So whatever they use
# stands above them, and there is no `from __future__ import annotations`: FastAPI could not find the types of
# their parameters by name any more.

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from clipserve import openapi
from clipserve.encoder_spec import EncoderSpec
from clipserve.endpoint_status import READY, EndpointStatus, Worker
from clipserve.endpoints import DOCUMENT_PATH, ENDPOINTS
from clipserve.errors import RequestError
from clipserve.meter import TIMING_HEADER
from clipserve.tracing import trace_headers, trace_line
from clipserve.wire import native, openai
from clipserve.wire.rows import MULTIPART, Reply, Row, check_head, media_type
from scale.serve.dispatcher import Dispatcher
from scale.serve.listener import answering, listen_at
from scale.serve.multipart import multipart_parts
from scale.serve.settings import EndpointSettings, ServerSettings
from scale.serve.tokens import Kind, TokenCheck
from scale.serve.tracing import SpanForEachRequest, export_spans, flushed_at_the_end

logger = logging.getLogger("ray.serve")

OPENAI_PATHS = "/v1/"
OPENAI_ENDPOINT = "v1"

# That a caller may take to send a body: whoever sends a byte a second should not hold a place for ever.
BODY_SECONDS = 30.0
# That replicas may take to say what they are.
DESCRIBE_SECONDS = 10.0


@dataclass(frozen=True)
class ServedModel:
    """What is said of the model, by one of its specs; `created` is a Unix time in seconds."""

    spec: EncoderSpec
    created: int


def _too_large(found: str, limit: int) -> RequestError:
    return RequestError("request_too_large", f"the body has {found} bytes, allowed are {limit}", 413)


def _response(request: Request, reply: Reply, headers: Mapping[str, str] | None = None) -> Response:
    names = trace_headers(request.headers)
    if names:
        logger.info(trace_line(names, reply.status))
    # Who listens answers with x-request-id by himself.
    told = {name: value for name, value in names.items() if name != "x-request-id"}
    return Response(reply.body, reply.status, {**told, **(headers or {})}, reply.content_type)


class TokenError(RequestError):
    """A token is missing or wrong."""

    def __init__(self, kind: Kind):
        super().__init__(
            "invalid_api_key",
            f"the {kind} token is missing or wrong; send 'Authorization: Bearer TOKEN' with that of the "
            "server's key file",
            401,
        )


@contextlib.asynccontextmanager
async def _lifespan(_: FastAPI) -> AsyncIterator[None]:
    async with flushed_at_the_end(), answering():
        yield


app = FastAPI(
    openapi_url=None,
    docs_url=None,
    redoc_url=None,
    redirect_slashes=False,
    middleware=[Middleware(SpanForEachRequest)],
    lifespan=_lifespan,
)


@app.exception_handler(RequestError)
async def _refuse(request: Request, error: RequestError) -> Response:
    if request.url.path.startswith(OPENAI_PATHS):
        return _response(request, openai.encode_error(error))
    if isinstance(error, TokenError):
        # As TorchServe says it, with its status: clients know by this that they should look for a new token.
        refusal = {"code": 400, "type": "InvalidKeyException", "message": error.message}
        return _response(request, Reply.json(400, refusal))
    asked = ENDPOINTS.get(request.path_params.get("endpoint", ""))
    return _response(request, native.encode_error(error) if asked is None else asked.refuse(error))


@app.exception_handler(HTTPException)
async def _no_such_path(request: Request, error: HTTPException) -> Response:
    codes = {404: "not_found", 405: "method_not_allowed"}
    message = f"{request.method} {request.url.path[:80]}: {error.detail}"
    return await _refuse(
        request, RequestError(codes.get(error.status_code, "refused"), message, error.status_code)
    )


@app.exception_handler(Exception)
async def _failed(request: Request, error: Exception) -> Response:
    # Starlette logs the traceback; the payload is not in it.
    return await _refuse(request, RequestError("internal_error", "the server failed at this request", 500))


@serve.ingress(app)
class Ingress:
    """Answers HTTP.

    Args:
        endpoints: the replicas of each endpoint, by its name.
        key_file: of the tokens that are asked for.
        served_model: what all endpoints serve.
        traces: address of an OpenTelemetry collector; None where no spans are made.
        address: host and port at which it listens itself; None where Ray Serve's proxy alone does.

    Raises:
        OSError: the address is taken.
    """

    def __init__(
        self,
        endpoints: Mapping[str, DeploymentHandle[Any]],
        settings: Mapping[str, EndpointSettings],
        server: ServerSettings,
        key_file: str,
        served_model: ServedModel,
        traces: str | None,
        address: tuple[str, int] | None,
    ):
        self._endpoints = endpoints
        self._dispatchers = {
            name: Dispatcher(replicas, settings[name], server) for name, replicas in endpoints.items()
        }
        self._settings = settings
        self._server = server
        self._tokens = TokenCheck(Path(key_file))
        self._served_model = served_model
        if traces is not None:
            export_spans(traces)
        if address is not None:
            listen_at(*address)

    @app.post("/predictions/{endpoint}")
    @app.post("/predictions/{endpoint}/{version}")
    async def predict(self, endpoint: str, request: Request, version: str | None = None) -> Response:
        """An endpoint's answer to one request."""
        self._check_token(request, "inference")
        self._check_name(endpoint, version)
        answer = await self._dispatchers[endpoint].ask(await self._row(request))
        timed = {"Server-Timing": answer.timing} if TIMING_HEADER in request.headers else {}
        return _response(request, answer.reply, timed)

    @app.get("/predictions/{endpoint}")
    @app.get("/predictions/{endpoint}/{version}")
    async def describe_endpoint(
        self, endpoint: str, request: Request, version: str | None = None
    ) -> Response:
        """What an endpoint takes, and which model it has."""
        self._check_token(request, "inference")
        self._check_name(endpoint, version)
        limits = self._settings[endpoint].handler.requests
        told = ENDPOINTS[endpoint].description(limits, self._served_model.spec)
        return _response(request, Reply.json(200, told))

    @app.get(DOCUMENT_PATH)
    async def describe_all(self, request: Request) -> Response:
        """What can be asked, as docs/openapi.json says it; nothing of this server, so it needs no token."""
        return _response(request, Reply.json(200, openapi.document()))

    @app.get("/ping")
    async def ping(self, request: Request) -> Response:
        """Whether every endpoint has a replica that answers."""
        self._check_token(request, "inference")
        for endpoint in self._endpoints:
            if not await self._describe(endpoint):
                return _response(request, Reply.json(503, {"status": "Unhealthy", "endpoint": endpoint}))
        return _response(request, Reply.json(200, {"status": "Healthy"}))

    @app.get("/models/{endpoint}")
    async def describe(self, endpoint: str, request: Request) -> Response:
        """The workers of an endpoint, and the specs of its encoders."""
        self._check_token(request, "management")
        self._check_name(endpoint)
        found = await self._describe(endpoint)
        status = EndpointStatus(
            [Worker(worker["pid"], READY) for worker in found],
            self._settings[endpoint].min_replicas,
            found[0]["encoders"] if found else (),
        )
        return _response(request, Reply.json(200, status.to_json()))

    @app.post("/v1/embeddings")
    async def openai_embeddings(self, request: Request) -> Response:
        """Embeddings of texts and pictures, as OpenAI's clients ask for them."""
        return await self.predict(OPENAI_ENDPOINT, request)

    @app.get("/v1/embeddings")
    async def describe_openai_embeddings(self, request: Request) -> Response:
        """What OpenAI's clients may send, and to which model."""
        return await self.describe_endpoint(OPENAI_ENDPOINT, request)

    @app.get("/v1/models")
    async def openai_models(self, request: Request) -> Response:
        """The one model that is served."""
        self._check_token(request, "inference")
        model = self._served_model
        return _response(request, openai.models_reply(model.spec.model_id, model.created))

    @app.get("/v1/models/{model:path}")
    async def openai_model(self, model: str, request: Request) -> Response:
        """The model of that id."""
        self._check_token(request, "inference")
        served = self._served_model
        return _response(request, openai.model_reply(model, served.spec.model_id, served.created))

    def _check_token(self, request: Request, kind: Kind) -> None:
        if not self._tokens.holds(request.headers.get("authorization", ""), kind):
            raise TokenError(kind)

    def _check_name(self, endpoint: str, version: str | None = None) -> None:
        if endpoint not in self._endpoints:
            raise RequestError("not_found", f"no such endpoint; there are {', '.join(self._endpoints)}", 404)
        if version not in (None, ENDPOINTS[endpoint].version):
            raise RequestError("not_found", f"{endpoint} has no version {version[:80]!r} here", 404)

    async def _row(self, request: Request) -> Row:
        content_type = request.headers.get("content-type", "")
        # A list, which may be spread over several headers.
        encoding = ", ".join(request.headers.getlist("content-encoding"))
        body = await self._body(request)
        check_head(content_type, encoding)
        if media_type(content_type) == MULTIPART:
            parts = await asyncio.to_thread(multipart_parts, content_type, body)
            return Row(b"", content_type, parts)
        return Row(body, content_type)

    async def _body(self, request: Request) -> bytes:
        limit = self._server.max_bytes
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > limit:
            raise _too_large(declared, limit)

        async def read() -> bytes:
            chunks, size = [], 0
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    raise _too_large(f"more than {limit}", limit)
                chunks.append(chunk)
            return b"".join(chunks)

        try:
            return await asyncio.wait_for(read(), BODY_SECONDS)
        except TimeoutError:
            raise RequestError(
                "request_timeout", f"the body did not arrive within {BODY_SECONDS:g} s", 408
            ) from None

    async def _describe(self, endpoint: str) -> list[dict[str, Any]]:
        """What each replica that answers says of itself."""
        try:
            answers = (
                await self._endpoints[endpoint]
                .broadcast("describe")
                .results_async(timeout_s=DESCRIBE_SECONDS, return_exceptions=True)
            )
        except TimeoutError:
            return []
        return [answer for answer in answers if isinstance(answer, dict)]
