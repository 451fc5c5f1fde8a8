"""The HTTP side: routes, who may call them, limits of bodies, and refusals. `sampling` answers what needs the model."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from megatron_ring.config.serve import ServeConfig
from megatron_ring.data.tokenizer import RingTokenizer
from megatron_ring.sampler.engine import Engine
from megatron_ring.serving import protocol
from megatron_ring.serving.answers import ChatAnswer, CompletionAnswer
from megatron_ring.serving.dispatcher import Dispatcher
from megatron_ring.serving.failures import ApiError, Unread, bad
from megatron_ring.serving.precedence import Precedence
from megatron_ring.serving.prompts import tokens_of_chat, tokens_of_text
from megatron_ring.serving.sampling import GONE, Sampling
from megatron_ring.serving.statistics import Statistics

OPEN = ("/", "/health")  # what needs no key
T = TypeVar("T")
Handler = Callable[[Request], Awaitable[Response]]


class Service:
    """The routes' common state.

    Args:
        api_key: what clients must bring (None: nothing).
        engine: of this process; it checks requests for all replicas.
        precedence: requests are handled while nobody is in it.
    """

    def __init__(
        self, config: ServeConfig, api_key: str | None, tokenizer: RingTokenizer, engine: Engine, dispatcher: Dispatcher,
        max_positions: int, precedence: Precedence,
    ) -> None:  # fmt: skip
        self.config, self.tokenizer, self.dispatcher = config, tokenizer, dispatcher
        self.name, self._key, self.started = config.served_name, api_key, int(time.time())
        self.limit = min(max_positions, engine.size.columns * engine.size.page_size)
        self.statistics, self._precedence = Statistics(), precedence
        self.sampling = Sampling(engine, dispatcher, self.statistics, self.limit, config.sampling.max_new_tokens)
        # One thread: tokenizers are not made for several, and long texts must not hold up the event loop.
        self._tokenizing = ThreadPoolExecutor(1, "tokenize")

    def app(self) -> Starlette:
        page = (Path(__file__).with_name("chat.html")).read_bytes()

        async def chat_page(request: Request) -> Response:
            return Response(page, media_type="text/html")

        paths: dict[str, tuple[str, Handler]] = {
            # The routes are tried one after another.
            "/v1/completions": ("POST", self.completions), "/v1/chat/completions": ("POST", self.chat),
            "/": ("GET", chat_page), "/health": ("GET", self.health), "/metrics": ("GET", self.metrics),
            "/v1/models": ("GET", self.models), "/tokenizer_info": ("GET", self.tokenizer_info),
            "/tokenize": ("POST", self.tokenize), "/detokenize": ("POST", self.detokenize),
        }  # fmt: skip
        routes = [Route(path, self._guarded(path, handler), methods=[verb]) for path, (verb, handler) in paths.items()]
        return Starlette(routes=routes, exception_handlers={HTTPException: _http_error})  # type: ignore[dict-item]

    def _guarded(self, path: str, handler: Handler) -> Handler:
        """Counts, and turns refusals into answers. A failure of ours is one too: the server goes on."""

        async def run(request: Request) -> Response:
            began = time.monotonic()
            self._precedence.stand_aside()
            try:
                self._check_caller(path, request)
                response = await handler(request)
            except ApiError as error:
                headers = {"retry-after": "1"} if error.status in (429, 503) else {}
                if error.status == 401:
                    headers["www-authenticate"] = "Bearer"
                form = Unread if error.status in (401, 403, 408, 413) else JSONResponse
                response = form(error.to_json(), error.status, headers)
            except ClientDisconnect:
                response = Response(status_code=GONE)
            self.statistics.requests[path, response.status_code] += 1
            if request.method == "POST" and not isinstance(response, StreamingResponse):
                self.statistics.request.add(time.monotonic() - began)
            return response

        return run

    def _check_caller(self, path: str, request: Request) -> None:
        origin = request.headers.get("origin")
        if origin is not None and _host_of(origin) != request.headers.get("host", ""):
            raise ApiError(403, "a page of another site may not use this server")
        if self._key is None or path in OPEN:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode("latin-1"), self._key.encode()):
            raise ApiError(401, "wrong or missing API key: send it as a bearer token", code="invalid_api_key")

    # What is served without the model.

    async def health(self, request: Request) -> Response:
        if self.dispatcher.failure is not None:
            return JSONResponse({"status": "failed", "reason": self.dispatcher.failure}, 500)
        if self.dispatcher.stopping:
            return JSONResponse({"status": "stopping"}, 503)
        return JSONResponse({"status": "ok"})

    async def metrics(self, request: Request) -> Response:
        dispatcher = self.dispatcher
        graphs = self.sampling.engine.runner.captured
        text = self.statistics.text(dispatcher.unfinished, dispatcher.cancelled, dispatcher.capacity, graphs)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def models(self, request: Request) -> Response:
        model = {"id": self.name, "object": "model", "created": self.started, "owned_by": "megatron_ring",
                 "max_model_len": self.limit}  # fmt: skip
        return JSONResponse({"object": "list", "data": [model]})

    async def tokenizer_info(self, request: Request) -> Response:
        info = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token_id": self.tokenizer.eos_id,
                "pad_token_id": self.tokenizer.pad_id, "vocab_size": self.tokenizer.vocab_size,
                "model_max_length": self.limit}  # fmt: skip
        return JSONResponse(info | self.tokenizer.special_texts())

    async def tokenize(self, request: Request) -> Response:
        body = await self._body(request)
        if "messages" in body:
            names = ("messages", "tools", "chat_template_kwargs", "model")
            ask = protocol.read_chat({name: body[name] for name in names if name in body}, self.config.sampling)
            tokens = await self._in_thread(lambda: tokens_of_chat(ask, self.tokenizer, self.config.instruction))
        else:
            text = body.get("prompt")
            if not isinstance(text, str):
                raise bad("prompt: send text, or messages", "prompt")
            tokens = await self._in_thread(lambda: self.tokenizer.encode(text))
        return JSONResponse({"tokens": tokens, "count": len(tokens), "max_model_len": self.limit})

    async def detokenize(self, request: Request) -> Response:
        tokens = (await self._body(request)).get("tokens")
        size = self.tokenizer.vocab_size
        if not isinstance(tokens, list) or any(type(token) is not int or not 0 <= token < size for token in tokens):
            raise bad(f"tokens: send a list of token ids from 0 to {size - 1}", "tokens")
        text = await self._in_thread(lambda: self.tokenizer.decode(tokens, skip_special=False))
        return JSONResponse({"prompt": text, "text": text})

    # What is sampled.

    async def completions(self, request: Request) -> Response:
        body = await self._body(request)
        protocol.refuse_model(body, self.name)
        ask = protocol.read_completion(body, self.config.sampling)
        self.dispatcher.check_room(len(ask.prompts) * ask.n)
        prompts = await self._tokens(ask.prompts)
        groups = self.sampling.requests(ask, prompts, ask.echo)
        return await self.sampling.answer(request, CompletionAnswer(ask, self.name, self.tokenizer, prompts), groups)

    async def chat(self, request: Request) -> Response:
        body = await self._body(request)
        protocol.refuse_model(body, self.name)
        ask = protocol.read_chat(body, self.config.sampling)
        self.dispatcher.check_room(ask.n)
        tokens = await self._in_thread(lambda: tokens_of_chat(ask, self.tokenizer, self.config.instruction))
        groups = self.sampling.requests(ask, [tokens], False)
        return await self.sampling.answer(request, ChatAnswer(ask, self.name, self.tokenizer, [tokens]), groups)

    async def _body(self, request: Request) -> dict[str, Any]:
        """The JSON object of a request, within the limits of size and time. Raises `ApiError`."""
        most = int(self.config.max_body_mib * 2**20)
        stated = request.headers.get("content-length", "")
        too_large = ApiError(413, f"the body is larger than {self.config.max_body_mib:g} MiB")
        if stated.isdigit() and len(stated) < 19 and int(stated) > most:
            raise too_large
        pieces, size = [], 0
        try:
            async with asyncio.timeout(self.config.body_seconds):
                async for piece in request.stream():
                    pieces.append(piece)
                    size += len(piece)
                    if size > most:
                        raise too_large
        except TimeoutError:
            raise ApiError(408, f"the body did not come within {self.config.body_seconds:g} seconds") from None
        return protocol.read_json(b"".join(pieces))

    async def _tokens(self, prompts: Sequence[str | list[int]]) -> list[list[int]]:
        """Of prompts of /v1/completions; another thread is asked for text alone."""

        def read() -> list[list[int]]:
            return [tokens_of_text(prompt, self.tokenizer) for prompt in prompts]

        return await self._in_thread(read) if any(isinstance(prompt, str) for prompt in prompts) else read()

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._tokenizing, work)


def _host_of(origin: str) -> str | None:
    """Host and port of an Origin header; None where it is no address."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


async def _http_error(request: Request, error: HTTPException) -> Response:
    """An unknown path or a wrong method, in the form of other refusals."""
    message = f"{request.method} {request.url.path[:200]}: {error.detail}"
    return JSONResponse(ApiError(error.status_code, message).to_json(), error.status_code, error.headers)
