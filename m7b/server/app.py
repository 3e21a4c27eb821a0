"""The routes: OpenAI's endpoints over one model, and what operators ask."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from m7b.completions import Completion, CompletionRequest, format_answers, parse_object, parse_request
from m7b.completions.remarks import Remarks, find_remarks
from m7b.errors import M7bError, UsageError
from m7b.generation import MAX_TOKENS, SamplingParams
from m7b.models import Model
from m7b.server.chunks import Chunks, tell_usage
from m7b.server.errors import HttpError, format_error, make_error_response, translate_error
from m7b.server.guard import Access, Guard
from m7b.server.metrics import Metrics
from m7b.server.responses import ResponseStream, format_response, read_response_request
from m7b.server.warm import read_warm_request, write_lines
from m7b.server.work import Answering, Busy, EngineThread, Stopping
from m7b.tokenizer import encode_special
from m7b.warm.wire import ANSWER_PATH

_PING_S = 15
_TEXT_TOKENS = 16  # what OpenAI's reference gives for completions
_MOST_PROMPTS = 256

Endpoint = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class _Wishes:
    """How an answer is to come, beside what it is to be."""

    streams: bool
    includes_usage: bool = False


class Server:
    """The routes over one engine's thread."""

    def __init__(self, engine: EngineThread, access: Access, identity: str = "") -> None:
        self._identity = identity
        self._engine, self._metrics = engine, Metrics(engine)
        self._preparing = asyncio.Lock()  # encoding is fast and compiling grammars is not shared by threads
        self.app = Starlette(
            routes=[
                Route("/v1/models", self._wrap(self.list_models)),
                Route("/v1/models/{name:path}", self._wrap(self.show_model)),
                Route("/v1/chat/completions", self._wrap(self.chat), methods=["POST"]),
                Route("/v1/completions", self._wrap(self.complete), methods=["POST"]),
                Route("/v1/responses", self._wrap(self.respond), methods=["POST"]),
                Route("/tokenize", self._wrap(self.tokenize), methods=["POST"]),
                Route("/detokenize", self._wrap(self.detokenize), methods=["POST"]),
                Route("/tokenizer_info", self._wrap(self.describe_tokenizer)),
                Route(ANSWER_PATH, self._wrap(self.answer_command), methods=["POST"]),
                Route("/health", self.tell_health),
                Route("/metrics", self.tell_metrics),
            ],
            middleware=[Middleware(Guard, access=access)],
            exception_handlers={404: _not_found, 405: _not_found, Exception: _bug},
        )

    async def tell_health(self, request: Request) -> Response:
        """Whether the model is there."""
        if self._engine.model is None:
            return JSONResponse({"status": "loading"}, 503, {"Retry-After": "1"})
        return JSONResponse({"status": "ok", "model": self._engine.model.name})

    async def tell_metrics(self, request: Request) -> Response:
        """Counters for Prometheus."""
        return Response(self._metrics.format(), media_type=self._metrics.media_type)

    async def list_models(self, request: Request) -> Response:
        """OpenAI's list of models: the one that there is, and one for each adapter."""
        model = self._require_model()
        models = [_describe(each, model) for each in (model, *model.others)]
        return JSONResponse({"object": "list", "data": models})

    async def show_model(self, request: Request) -> Response:
        """One model of that list."""
        model = self._require_model()
        return JSONResponse(_describe(_choose_model(model, request.path_params["name"]), model))

    async def tokenize(self, request: Request) -> Response:
        """Ids of a text: `{"content": …}`, or of a conversation: `{"messages": …}`."""
        model, fields = self._require_model(), _read_object(await request.body())
        async with self._preparing:
            tokens = await asyncio.to_thread(_tokenize, model, fields)
        pieces = [model.tokenizer.piece(token) for token in tokens]
        return JSONResponse({"tokens": tokens, "pieces": pieces, "count": len(tokens)})

    async def detokenize(self, request: Request) -> Response:
        """The text of ids: `{"tokens": […]}`."""
        model, fields = self._require_model(), _read_object(await request.body())
        tokens = fields.get("tokens")
        known = range(model.tokenizer.vocab_size)
        if not isinstance(tokens, list) or not all(type(token) is int and token in known for token in tokens):
            raise UsageError(f"tokens must be ids from 0 to {known[-1]}", param="tokens")
        text = model.tokenizer.decode(tokens)
        return JSONResponse({"content": text, "prompt": text})

    async def describe_tokenizer(self, request: Request) -> Response:
        """The names of the ids that begin and end a text, as vLLM tells them."""
        tokenizer = self._require_model().tokenizer
        ids = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id}
        names = {name: None if token is None else tokenizer.piece(token) for name, token in ids.items()}
        return JSONResponse({"tokenizer_class": tokenizer.description, **names})

    async def chat(self, request: Request) -> Response:
        """Answer a conversation."""
        model, fields = self._require_model(), _read_object(await request.body())
        wishes = _take_wishes(fields)
        model = _choose_model(model, fields.get("model"))
        if not isinstance(fields.get("messages"), list):
            raise UsageError("messages must be a list of objects", param="messages")
        parsed = parse_request(fields, _defaults(MAX_TOKENS), is_chat=True)
        return await self._answer(request, await self._prepare(model, [parsed]), wishes)

    async def complete(self, request: Request) -> Response:
        """Continue texts, or ids."""
        model, fields = self._require_model(), _read_object(await request.body())
        wishes = _take_wishes(fields)
        model = _choose_model(model, fields.get("model"))
        parsed = [
            parse_request(fields | {"prompt": prompt}, _defaults(_TEXT_TOKENS))
            for prompt in _list_prompts(fields.get("prompt"))
        ]
        return await self._answer(request, await self._prepare(model, parsed), wishes)

    async def respond(self, request: Request) -> Response:
        """Answer in the shape of OpenAI's Responses, keeping nothing."""
        model, fields = self._require_model(), _read_object(await request.body())
        model = _choose_model(model, fields.get("model"))
        chat = read_response_request(fields)
        parsed = parse_request(chat, _defaults(MAX_TOKENS), is_chat=True)
        completions = await self._prepare(model, [parsed])
        answering = await self._begin(completions)
        if not fields.get("stream"):
            await self._run(request, answering)
            return JSONResponse(format_response(completions[0], fields))
        stream = ResponseStream(completions[0], fields)
        return self._stream(answering, stream.begin, stream.add, stream.finish, stream.fail)

    async def answer_command(self, request: Request) -> Response:
        """Answer a command of m7b's own."""
        model, asked = self._require_model(), read_warm_request(await request.body())
        if asked.identity is not None and asked.identity != self._identity:
            raise HttpError(409, f"{model.name} is served here, not what was asked for", code="other_model")
        remarks: Remarks | None = None
        answering: Answering | M7bError
        try:
            async with self._preparing:
                remarks = await asyncio.to_thread(find_remarks, model, asked.request)
            answering = await self._begin(await self._prepare(model, [asked.request]))
        except (Busy, Stopping):
            raise
        except M7bError as error:
            answering = error

        async def pull() -> AsyncIterator[str]:
            try:
                async for line in write_lines(remarks, answering, is_whole=asked.is_whole):
                    yield line
            finally:
                if isinstance(answering, Answering):
                    self._close(answering)

        return StreamingResponse(pull(), media_type="application/x-ndjson")

    async def _answer(self, request: Request, completions: list[Completion], wishes: _Wishes) -> Response:
        answering = await self._begin(completions)
        if not wishes.streams:
            await self._run(request, answering)
            return JSONResponse(format_answers(completions) | {"usage": tell_usage(completions)})
        chunks = Chunks(completions, includes_usage=wishes.includes_usage)

        def end() -> Iterable[dict[str, Any] | str]:
            return [*chunks.finish(), "[DONE]"]

        return self._stream(answering, lambda: (), chunks.add, end, lambda error: [format_error(error)])

    async def _prepare(self, model: Model, requests: list[CompletionRequest]) -> list[Completion]:
        """Encode prompts and compile grammars, off the event loop."""
        async with self._preparing:
            return await asyncio.to_thread(lambda: [Completion(model, request) for request in requests])

    async def _begin(self, completions: list[Completion]) -> Answering:
        """Queue the request, and wait until the engine has taken it.

        Raises:
            M7bError: it does not take it.
        """
        answering = self._engine.submit(completions)
        try:
            await answering.take()
        except BaseException:
            self._engine.cancel(answering)
            raise
        return answering

    async def _run(self, request: Request, answering: Answering) -> None:
        """Wait for the whole answer; a client that goes away ends it."""
        gone = asyncio.create_task(_wait_until_gone(request))
        whole = asyncio.create_task(_drain(answering))
        try:
            await asyncio.wait({gone, whole}, return_when=asyncio.FIRST_COMPLETED)
            if not whole.done():
                raise HttpError(499, "the client has gone")
            whole.result()
        finally:
            gone.cancel()
            whole.cancel()
            self._close(answering)

    def _stream(
        self,
        answering: Answering,
        begin: Callable[[], Iterable[Any]],
        add: Callable[..., Iterable[Any]],
        finish: Callable[[], Iterable[Any]],
        fail: Callable[[HttpError], Iterable[Any]],
    ) -> Response:
        """Server-sent events of what `begin`, `add`, `finish` and `fail` make of an answer."""

        async def pull() -> AsyncIterator[dict[str, str]]:
            try:
                for item in begin():
                    yield _event(item)
                while (events := await answering.take()) is not None:
                    for index, event in events:
                        for item in add(index, event):
                            yield _event(item)
                for item in finish():
                    yield _event(item)
            except M7bError as error:
                for item in fail(translate_error(error)):
                    yield _event(item)
            finally:
                self._close(answering)

        return EventSourceResponse(pull(), ping=_PING_S, sep="\n")

    def _close(self, answering: Answering) -> None:
        """Let a request go, and count it."""
        self._engine.cancel(answering)
        self._metrics.count(answering)

    def _require_model(self) -> Model:
        if self._engine.model is None:
            raise HttpError(503, "the model is being loaded", code="loading")
        return self._engine.model

    def _wrap(self, endpoint: Endpoint) -> Endpoint:
        """An endpoint that tells errors as OpenAI does."""

        async def call(request: Request) -> Response:
            try:
                return await endpoint(request)
            except HttpError as error:
                return make_error_response(error)
            except M7bError as error:
                return make_error_response(translate_error(error))

        return call


def _defaults(max_tokens: int) -> CompletionRequest:
    return CompletionRequest("", SamplingParams(max_tokens=max_tokens))


def _event(item: dict[str, Any] | str) -> dict[str, str]:
    """One event; those that have a type are named by it."""
    if isinstance(item, str):
        return {"data": item}
    data = {"data": json.dumps(item, ensure_ascii=False)}
    return data | ({"event": str(item["type"])} if "type" in item else {})


async def _drain(answering: Answering) -> None:
    while await answering.take() is not None:
        pass


async def _wait_until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _read_object(body: bytes) -> dict[str, Any]:
    return parse_object(body)


def _take_wishes(fields: dict[str, Any]) -> _Wishes:
    """Take what says how an answer is to come out of `fields`.

    Raises:
        UsageError: it cannot come so.
    """
    streams = fields.pop("stream", None) or False
    if not isinstance(streams, bool):
        raise UsageError("stream must be true or false", param="stream")
    options = fields.pop("stream_options", None) or {}
    if not isinstance(options, dict) or not all(isinstance(value, bool) for value in options.values()):
        raise UsageError("stream_options must be an object of true and false", param="stream_options")
    if options and not streams:
        raise UsageError("stream_options goes with stream", param="stream_options")
    if unknown := sorted(options.keys() - {"include_usage", "include_obfuscation"}):
        raise UsageError(f"stream_options has no {unknown[0]!r}", param=f"stream_options.{unknown[0]}")
    if options.get("include_obfuscation"):
        raise UsageError("streams are not padded here", param="stream_options.include_obfuscation")
    return _Wishes(streams, options.get("include_usage", False))


def _list_prompts(prompt: Any) -> list[Any]:
    """The prompts of a request for texts: one, or each of a list."""
    if not isinstance(prompt, list) or (prompt and type(prompt[0]) is int):
        return [prompt]
    if not 1 <= len(prompt) <= _MOST_PROMPTS:
        raise UsageError(
            f"there are {len(prompt)} prompts", hint=f"send 1 to {_MOST_PROMPTS}", param="prompt"
        )
    return prompt


def _choose_model(model: Model, name: Any) -> Model:
    """The model or the adapter that is called `name`; the model itself for None."""
    served = {each.name: each for each in (model, *model.others)}
    if name is None:
        return model
    if not isinstance(name, str) or name not in served:
        names = ", ".join(map(repr, served))
        raise HttpError(
            404,
            f"the model {name!r} is not served here: {names} {'are' if model.others else 'is'}",
            code="model_not_found",
            param="model",
        )
    return served[name]


def _describe(model: Model, base: Model) -> dict[str, Any]:
    return ({"parent": base.name} if model is not base else {}) | {
        "id": model.name,
        "object": "model",
        "created": 0,
        "owned_by": "m7b",
        "max_model_len": model.ctx_size,
        "type": "base",  # Mistral's own client reads no list without it
        "capabilities": {"completion_chat": model.template is not None},
    }


def _tokenize(model: Model, fields: dict[str, Any]) -> list[int]:
    if "messages" in fields:
        request = parse_request(fields, _defaults(1), is_chat=True)
        return Completion(model, replace(request, grammar=None)).ids
    unknown = sorted(fields.keys() - {"model", "content", "prompt", "add_special", "add_special_tokens"})
    if unknown:
        raise UsageError(f"unknown field {unknown[0]!r}", hint="leave it out", param=unknown[0])
    content = fields.get("content", fields.get("prompt"))
    if not isinstance(content, str):
        raise UsageError("content must be a string", hint="or send messages", param="content")
    name = "add_special_tokens" if "add_special_tokens" in fields else "add_special"
    adds_bos = fields.get(name, model.tokenizer.adds_bos)
    if not isinstance(adds_bos, bool):
        raise UsageError(f"{name} must be true or false", param=name)
    if "content" in fields:
        return model.tokenizer.encode(content, bos=adds_bos)
    return encode_special(model.tokenizer, content, bos=adds_bos)  # as vLLM reads its `prompt`


async def _not_found(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    reason = "there is no" if status == 404 else f"{request.method} is not for"
    return make_error_response(HttpError(status, f"{reason} {request.url.path} here"))


async def _bug(request: Request, error: Exception) -> Response:
    return make_error_response(HttpError(500, "this is a bug in m7b; its log says where"))
