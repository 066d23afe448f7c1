"""A cascade behind an OpenAI-compatible API: what is taken in, how much at once, what is told.

===========================  =====================================================================
``POST /v1/chat/completions``  a final answer, whole or streamed; ``usage`` is of both models, with
                             the cost; ``corea`` says who answered, why, and the confidence
``POST /v1/route``           the decision alone, with the small model's scores and what it said
``GET /v1/models``           the one model there is: the cascade
``GET /metrics``             for Prometheus
``GET /healthz``             whether it runs
===========================  =====================================================================

1. A parameter that the cascade cannot heed is refused by its name, never ignored.
2. A question is at most ``max_body`` bytes and there within ``read_seconds``. ``at_once`` questions
   are worked on, as many as ``waiting`` wait up to ``wait_seconds``; others are told at once to
   come again (429), and those that waited in vain (503), with ``Retry-After``.
3. A client that hangs up ends the work on its question; that it did is in the log.
4. On loopback, a request whose ``Host`` is another name is refused: a page in a browser could
   otherwise ask. With a key, all but ``/healthz`` needs it.
5. What a question or an answer says, and the key, are in no message of the log of the program.
6. A question is in the answer log before its answer is given; where it cannot be written, the
   answer is an error.
7. Of the share ``audit`` of questions the large model's answer is had in any case
   (:mod:`corea.serving.log`); where the small model answered, after that. Answers are compared by
   :func:`corea.tasks.verify.score_answers`, as mathematics.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import re
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from corea import checks
from corea.engines.base import LONE_SURROGATE, Rollout, Sampling
from corea.records import json_object
from corea.serving.cascade import Answered, Cascade, CascadeError, Decision
from corea.serving.log import AnswerLog
from corea.tasks.parsing import parse_completion
from corea.tasks.verify import score_answers

LOOPBACK = ("127.0.0.1", "localhost", "::1")

_TOLD = ("answered_by", "answer", "confidence", "probability", "deferred", "degraded", "reason")
_RECENT = 1000  # questions that the deferral rate is of
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_REFUSED = re.compile(r"(HTTP \d+): .*", re.DOTALL)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What a service takes on; choice 2 of the module."""

    at_once: int = 64
    waiting: int = 128
    wait_seconds: float = 10.0
    max_body: int = 2**20
    read_seconds: float = 15.0
    max_tokens: int = 8192
    send_seconds: float = 60.0  # beyond the models' own, for a client that reads slowly

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name, least in (("at_once", 1), ("waiting", 0), ("max_body", 1), ("max_tokens", 1)):
            checks.whole(getattr(self, name), name, least)


class Refusal(Exception):
    """A request that is not answered, and the error it gets."""

    def __init__(
        self, status: int, message: str, kind: str = "invalid_request_error", retry: int = 0
    ) -> None:
        """Keep what is told."""
        super().__init__(message)
        self.status, self.kind, self.retry = status, kind, retry

    def body(self) -> dict[str, Any]:
        """The error as OpenAI's API has it."""
        return {"error": {"message": str(self), "type": self.kind, "param": None, "code": None}}

    def response(self) -> Response:
        """The answer."""
        headers = {"Retry-After": str(self.retry)} if self.retry else {}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body(), self.status, headers)


class _Taken(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Part(_Taken):
    type: Literal["text"]
    text: str


class _Message(_Taken):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_Part]


class _StreamOptions(_Taken):
    include_usage: bool = False


class _Question(_Taken):
    """What a request may say. Of ``n`` and ``top_p`` only what is done anyway."""

    model: str
    messages: list[_Message] = Field(min_length=1)
    stream: bool = False
    stream_options: _StreamOptions = _StreamOptions()
    temperature: float | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    n: Literal[1] = 1
    top_p: float = Field(default=1, ge=1, le=1)
    user: str = ""
    metadata: dict[str, str] = {}


@dataclass(eq=False)
class _One:
    """One question on its way."""

    question: _Question
    messages: list[dict[str, str]]
    sampling: Sampling
    seed: int
    begun: float
    audit: bool
    waited: float = 0.0
    recorded: bool = False
    begun_telling: bool = False
    decision: Decision | None = None
    answered: Answered | None = None
    agrees: bool | None = None
    name: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))


class Metrics:
    """What Prometheus is told; ``small`` and ``large`` stand for the systems."""

    def __init__(self) -> None:
        """All at zero."""
        self.registry = kept = CollectorRegistry()

        def count(name: str, help: str, *labels: str) -> Counter:
            return Counter(f"corea_{name}", help, labels, registry=kept)

        def gauge(name: str, help: str) -> Gauge:
            return Gauge(f"corea_{name}", help, registry=kept)

        def times(name: str, help: str, *labels: str) -> Histogram:
            return Histogram(f"corea_{name}", help, labels, registry=kept, buckets=_SECONDS)

        self.questions = count("questions", "Questions by outcome", "outcome")
        self.deferred = count("deferred", "Deferred questions by reason", "why")
        self.refused = count("refused", "Requests refused by status", "status")
        self.tokens = count("tokens", "Tokens", "system", "kind")
        self.cost = count("cost", "In input tokens of the small model", "system")
        self.audited = count("audited", "Drawn questions kept, by agreement", "agrees")
        self.seconds = times("model_seconds", "Waiting for a model", "system")
        self.waited = times("wait_seconds", "Waiting for a place")
        self.overhead = times(
            "overhead_seconds", "Beside waiting for models and a place, without streamed answers"
        )
        self.at_work = gauge("at_work", "Questions in progress or waiting")
        self.drift = gauge("drift_alarm", "1 once the drift alarm has fired")
        self.recent: deque[bool] = deque(maxlen=_RECENT)
        gauge("deferral_rate", f"Share of the last {_RECENT:,} questions").set_function(
            lambda: sum(self.recent) / max(1, len(self.recent))
        )


class Service:
    """A cascade, its log and its limits, as an ASGI application (:attr:`app`)."""

    def __init__(
        self,
        cascade: Cascade,
        log: AnswerLog,
        *,
        name: str = "corea",
        dataset: str = "served",
        limits: Limits | None = None,
        key: str = "",
        hosts: tuple[str, ...] = LOOPBACK,
        keep_text: bool = False,
        audit: float = 0.0,
        on_loss: Callable[[float], bool] | None = None,
    ) -> None:
        """Put them together.

        ``hosts`` are the names it is called by (any, if empty); ``on_loss`` takes in the loss of
        each drawn question and says whether a drift alarm has fired.
        """
        if not 0 <= audit <= 1:
            raise ValueError(f"audit is {audit!r}; expected a share from 0 to 1")
        self.cascade, self.log, self.name, self.dataset = cascade, log, name, dataset
        self.limits, self.metrics = limits or Limits(), Metrics()
        self._key, self._hosts = key, hosts
        self._keep_text, self._audit, self._on_loss = keep_text, audit, on_loss
        self._places = asyncio.Semaphore(self.limits.at_once)
        self._inside, self._fired = 0, False
        self._audits: set[asyncio.Task[None]] = set()
        self._longest = cascade.small_seconds + cascade.large_seconds + self.limits.send_seconds
        self.app = Starlette(
            routes=[
                Route("/v1/chat/completions", _Endpoint(self, self._answer), methods=["POST"]),
                Route("/v1/route", _Endpoint(self, self._route), methods=["POST"]),
                Route("/v1/models", self._models),
                Route("/metrics", self._metrics),
                Route("/healthz", lambda _: PlainTextResponse("ok\n")),
            ],
            exception_handlers={Refusal: lambda _, refusal: refusal.response()},
            lifespan=self._lifespan,
        )

    # --- what comes in ---

    def admit(self, scope: Scope) -> None:
        """Refuse who may not ask (choice 4)."""
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1").lower()
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if self._hosts and name.strip("[]") not in self._hosts:
            raise Refusal(403, "this server is not called by that name (header Host)")
        given = headers.get(b"authorization", b"")
        if self._key and not hmac.compare_digest(given, b"Bearer " + self._key.encode()):
            raise Refusal(401, "expected the server's key: Authorization: Bearer ...")

    async def read(self, scope: Scope, receive: Receive) -> dict[str, Any]:
        """The JSON of a request, within limits."""
        kind = dict(scope["headers"]).get(b"content-type", b"").decode("latin-1")
        if kind.partition(";")[0].strip().lower() != "application/json":
            raise Refusal(415, "expected Content-Type: application/json")
        most, body, size, more = self.limits.max_body, [], 0, True
        try:
            async with asyncio.timeout(self.limits.read_seconds):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise asyncio.CancelledError
                    part, more = message.get("body", b""), message.get("more_body", False)
                    size += len(part)
                    # a client reads no answer before it has said all, so some more is listened to
                    if size <= most:
                        body.append(part)
                    elif size > 32 * most:
                        break
        except TimeoutError:
            raise Refusal(
                408, f"the request was not there within {self.limits.read_seconds:g} s"
            ) from None
        if size > most:
            raise Refusal(413, f"the request has more than {most:,} bytes, the limit")
        try:
            found = json_object(text := b"".join(body).decode())
            if "\\u" in text and LONE_SURROGATE.search(json.dumps(found, ensure_ascii=False)):
                raise ValueError("not Unicode: it has half of a surrogate pair")
        except ValueError as error:
            raise Refusal(400, f"the request is {error}") from None
        return found

    def ask(self, found: dict[str, Any], begun: float) -> _One:
        """The question in a request; what cannot be heeded is refused (choice 1)."""
        try:
            question = _Question.model_validate(_without_nulls(found))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"]))
            told = "is not taken by the cascade" if "extra" in first["type"] else first["msg"]
            raise Refusal(400, f"parameter {place[:100]}: {told}") from None
        if question.model != self.name:
            raise Refusal(404, f"there is no model but {self.name!r}", "model_not_found")
        changed: dict[str, Any] = {}
        if question.temperature is not None:
            changed["temperature"] = question.temperature
        tokens = question.max_completion_tokens
        tokens = question.max_tokens if tokens is None else tokens
        if tokens is not None:
            if tokens > self.limits.max_tokens:
                raise Refusal(400, f"max_tokens is above {self.limits.max_tokens:,}, the limit")
            changed["max_completion_tokens"] = tokens
        messages = [
            {
                "role": message.role,
                "content": message.content
                if isinstance(message.content, str)
                else "".join(part.text for part in message.content),
            }
            for message in question.messages
        ]
        if messages[-1]["role"] != "user" or not messages[-1]["content"].strip():
            raise Refusal(400, "parameter messages: expected a question of the user as the last")
        try:
            sampling = replace(self.cascade.sampling, **changed)
        except ValueError as error:
            raise Refusal(400, f"parameter {error}") from None
        seed = secrets.randbits(31) if question.seed is None else question.seed
        drawn = self._audit > 0 and secrets.randbelow(10**6) < self._audit * 10**6
        audit = drawn and len(self._audits) < self.limits.at_once
        return _One(question, messages, sampling, seed, begun, audit)

    @asynccontextmanager
    async def place(self, one: _One) -> AsyncIterator[None]:
        """One of the places at work, waited for (choice 2)."""
        limits = self.limits
        if self._inside >= limits.at_once + limits.waiting:
            raise Refusal(429, "too many questions at once; ask again", "rate_limit_error", 1)
        self._inside += 1
        self.metrics.at_work.set(self._inside)
        begun = time.perf_counter()
        try:
            try:
                async with asyncio.timeout(limits.wait_seconds):
                    await self._places.acquire()
            except TimeoutError:
                raise Refusal(
                    503, "the cascade is busy; ask again", "overloaded_error", 5
                ) from None
            try:
                one.waited = time.perf_counter() - begun
                self.metrics.waited.observe(one.waited)
                yield
            finally:
                self._places.release()
        finally:
            self._inside -= 1
            self.metrics.at_work.set(self._inside)

    # --- what goes out ---

    async def _answer(self, one: _One, send: Send) -> dict[str, Any] | None:
        """The answer to a question; None once it was streamed."""
        one.decision = await self.cascade.decide(one.messages, one.sampling, one.seed)
        if one.question.stream:
            await self._stream(one, one.decision, send)
            return None
        answered = await self.cascade.finish(one.decision)
        await self._settle(one, answered)
        message = {"role": "assistant", "content": answered.text}
        choice = {"index": 0, "message": message, "logprobs": None}
        choice["finish_reason"] = "stop" if answered.finished else "length"
        models = one.decision.seconds + answered.large_seconds
        self.metrics.overhead.observe(time.perf_counter() - one.begun - one.waited - models)
        return {
            **self._named(one, "chat.completion"),
            "choices": [choice],
            "usage": self._usage(answered),
            "corea": self._route_told(answered),
        }

    async def _stream(self, one: _One, decision: Decision, send: Send) -> None:
        """Answer in events; what fails after the first of them is an event too."""
        named = self._named(one, "chat.completion.chunk")

        async def tell(told: dict[str, Any] | str) -> None:
            text = told if isinstance(told, str) else json.dumps(told)
            event = {"type": "http.response.body", "body": f"data: {text}\n\n".encode()}
            await send({**event, "more_body": told != "[DONE]"})

        async def delta(content: dict[str, str], reason: str | None, **more: Any) -> None:
            choice = {"index": 0, "delta": content, "finish_reason": reason}
            await tell({**named, "choices": [choice], **more})

        try:
            async with aclosing(self.cascade.finish_streamed(decision)) as parts:
                async for part in parts:
                    if isinstance(part, Answered):
                        await self._settle(one, part)
                        reason = "stop" if part.finished else "length"
                        told = {"corea": self._route_told(part)}
                        await delta({}, reason, **told)
                        if one.question.stream_options.include_usage:
                            await tell({**named, "choices": [], "usage": self._usage(part), **told})
                        continue
                    if not one.begun_telling:
                        headers = [
                            (b"content-type", b"text/event-stream; charset=utf-8"),
                            (b"cache-control", b"no-store"),
                        ]
                        await send(
                            {"type": "http.response.start", "status": 200, "headers": headers}
                        )
                        one.begun_telling = True
                        await delta({"role": "assistant", "content": ""}, None)
                    await delta({"content": part}, None)
        except Exception as error:
            if not one.begun_telling:
                raise
            await tell(self.failed(one, error).body())
        await tell("[DONE]")

    async def _route(self, one: _One, _: Send) -> dict[str, Any]:
        """The decision alone."""
        card, one.audit = self.cascade.card, False
        decision = one.decision = await self.cascade.decide(one.messages, one.sampling, one.seed)
        self.record(one, "decided")
        said = None if decision.small.error else decision.small.completion
        return {
            **self._named(one, "routing.decision"),
            "choice": card.large if decision.deferred else card.small,
            "scores": {name: _number(value) for name, value in decision.scores.items()},
            "signal": card.signal,
            "threshold": card.threshold,
            "reason": decision.reason,
            "probability": decision.probability,
            "message": {"role": "assistant", "content": said},
            "answer": decision.answer,
            "cost": self.cascade.cost(decision.small),
        }

    def _named(self, one: _One, kind: str) -> dict[str, Any]:
        return {"id": one.name, "object": kind, "created": one.created, "model": self.name}

    def _usage(self, answered: Answered) -> dict[str, Any]:
        read = sum(tokens[0] for tokens in answered.tokens.values())
        written = sum(tokens[1] for tokens in answered.tokens.values())
        return {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
            "cost": answered.cost,
        }

    def _route_told(self, answered: Answered) -> dict[str, Any]:
        return {
            **{name: getattr(answered, name) for name in _TOLD},
            "threshold": self.cascade.card.threshold,
            "cost": answered.cost,
            "tokens": {
                name: {"prompt_tokens": read, "completion_tokens": written}
                for name, (read, written) in answered.tokens.items()
            },
        }

    async def _models(self, request: Any) -> Response:
        self.admit(request.scope)
        listed = {"id": self.name, "object": "model", "created": 0, "owned_by": "corea"}
        return JSONResponse({"object": "list", "data": [listed]})

    async def _metrics(self, request: Any) -> Response:
        self.admit(request.scope)
        return Response(
            generate_latest(self.metrics.registry), media_type="text/plain; version=0.0.4"
        )

    # --- what is kept ---

    async def _settle(self, one: _One, answered: Answered) -> None:
        """Keep a question that was answered."""
        if one.audit and answered.large is not None:
            one.agrees = await self._agree(answered.decision, answered.large)
        one.answered = answered
        self.record(one)

    async def _agree(self, decision: Decision, large: Rollout) -> bool | None:
        """Whether the models' answers are equal; None where the large one gave none."""
        ours, theirs = decision.answer, parse_completion(large.completion).answer
        if theirs is None or ours is None or ours == theirs:
            return None if theirs is None else ours is not None
        [same] = await asyncio.to_thread(score_answers, [ours], [theirs], ["math"])
        return same is True

    def failed(self, one: _One, error: BaseException) -> Refusal:
        """Keep that a question has no answer; what its client is told."""
        if isinstance(error, CascadeError):
            refusal = Refusal(502, f"no answer could be had: {error}", "upstream_error", 1)
        elif isinstance(error, TimeoutError):
            refusal = Refusal(504, "the answer was not read in time", "timeout_error")
        elif isinstance(error, asyncio.CancelledError):
            refusal = Refusal(499, "the client hung up, or the server was stopped")
        elif isinstance(error, OSError):
            _log.error("an answer could not be recorded: %s", error.strerror or error)
            one.recorded = True
            refusal = Refusal(503, "the answer could not be recorded", "server_error", 5)
            self.metrics.questions.labels("unrecorded").inc()
        else:
            _log.error("a question failed: %s", type(error).__name__, exc_info=_place_of(error))
            refusal = Refusal(500, "the server failed at this question", "server_error")
        if not one.recorded:
            try:
                self.record(one, "error", str(refusal), getattr(error, "large", None))
            except OSError as unwritten:
                return self.failed(one, unwritten)
        return refusal

    def record(
        self, one: _One, outcome: str = "", error: str = "", large: Rollout | None = None
    ) -> None:
        """Append a question to the log and the metrics, before it is answered."""
        decision, answered, metrics = one.decision, one.answered, self.metrics
        if answered is not None and not error:
            large = answered.large
            by = "large" if answered.deferred and not answered.degraded else "small"
            outcome = "degraded" if answered.degraded else by
        rows = [self._row(one, decision.small if decision else None, outcome, error)]
        if large is not None:
            rows.append(self._row(one, large, outcome, error, of_large=True))
        self.log.append(rows)
        one.recorded = True
        metrics.questions.labels(outcome).inc()
        if decision is not None:
            metrics.seconds.labels("small").observe(decision.seconds)
            metrics.recent.append(decision.deferred)
            if decision.deferred:
                why = "failed" if decision.small.error else "low"
                why = "missing" if decision.confidence is None and why == "low" else why
                metrics.deferred.labels(why).inc()
        if answered is not None and answered.large is not None:
            metrics.seconds.labels("large").observe(answered.large_seconds)
        if one.audit and outcome == "large":
            self._lost(0.0)
        elif one.audit and outcome == "small":
            self._audits.add(task := asyncio.create_task(self._audited(one)))
            task.add_done_callback(self._audits.discard)

    def _row(
        self,
        one: _One,
        rollout: Rollout | None,
        outcome: str,
        error: str = "",
        *,
        of_large: bool = False,
    ) -> dict[str, Any]:
        """What one system said, as a line of the log; counted on the way."""
        decision, answered, card = one.decision, one.answered, self.cascade.card
        there = rollout is not None and not rollout.error
        cost = self.cascade.cost(rollout, large=of_large) if rollout and there else None
        side = "large" if of_large else "small"
        if rollout and there:
            self.metrics.tokens.labels(side, "prompt").inc(rollout.prompt_tokens)
            self.metrics.tokens.labels(side, "completion").inc(rollout.completion_tokens)
            self.metrics.cost.labels(side).inc(cost or 0)
        reason = answered.reason if answered else decision.reason if decision else ""
        error = (rollout.error if rollout else "") or error
        if not self._keep_text:  # a server may say a question again where it refuses it
            reason, error = (_REFUSED.sub(r"\1", text) for text in (reason, error))
        row = {
            "dataset": self.dataset,
            "question_id": one.name,
            "system": card.large if of_large else card.small,
            "sample": 0,
            "confidence": decision.confidence if decision and not of_large else None,
            "prompt_tokens": rollout.prompt_tokens if rollout and there else None,
            "completion_tokens": rollout.completion_tokens if rollout and there else None,
            "outcome": outcome,
            "deferred": decision.deferred if decision else None,
            "audit": one.audit,
            "agrees": one.agrees if of_large else None,
            "reason": reason,
            "error": error,
            "cost": cost,
            "seconds": round(time.perf_counter() - one.begun, 6),
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "name": one.question.metadata.get("question_id", "")[:200],
        }
        if self._keep_text:
            said = rollout.completion if rollout and there else None
            row["answer"] = parse_completion(said).answer if said else None
            row |= {"completion": said, "messages": one.messages}
        return row

    async def _audited(self, one: _One) -> None:
        """Ask the large model what the small one answered, to compare."""
        decision = one.decision
        if decision is None:
            return
        try:
            large, _ = await self.cascade.ask_large(decision)
            one.agrees = await self._agree(decision, large)
            self.log.append([self._row(one, large, "audit", of_large=True)])
            self.metrics.audited.labels(str(one.agrees).lower()).inc()
            if one.agrees is not None:
                self._lost(1.0 - one.agrees)
        except Exception as error:
            _log.error("an audit failed: %s", type(error).__name__)

    def _lost(self, loss: float) -> None:
        if self._on_loss is not None and self._on_loss(loss):
            if not self._fired:
                _log.warning("drift alarm: the card's promise is no longer kept")
            self._fired = True
            self.metrics.drift.set(1)

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        if self._audit:  # whatever compares answers takes a second to start
            await asyncio.to_thread(score_answers, ["1"], ["x"], ["math"])
        yield
        if self._audits:
            await asyncio.wait(self._audits, timeout=self.cascade.large_seconds)
        await self.cascade.close_here()


class _Endpoint:
    """Reads a question, finds it a place, and works on it while its client is there."""

    def __init__(
        self, service: Service, work: Callable[[_One, Send], Awaitable[dict[str, Any] | None]]
    ) -> None:
        self._service, self._work = service, work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun, service = time.perf_counter(), self._service
        try:
            service.admit(scope)
            one = service.ask(await service.read(scope, receive), begun)
            async with service.place(one):
                told = await self._while_heard(one, receive, send)
            if told is not None:
                await JSONResponse(told)(scope, receive, send)
        except Refusal as refusal:
            service.metrics.refused.labels(str(refusal.status)).inc()
            await refusal.response()(scope, receive, send)
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) and task.cancelling():
                raise

    async def _while_heard(self, one: _One, receive: Receive, send: Send) -> dict[str, Any] | None:
        work = asyncio.create_task(self._settled(one, send))
        left = asyncio.create_task(_left(receive))
        try:
            await asyncio.wait({work, left}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            left.cancel()
            if not work.done():
                work.cancel()
                await asyncio.wait({work})
        return None if work.cancelled() else work.result()

    async def _settled(self, one: _One, send: Send) -> dict[str, Any] | None:
        """Work on a question; in the end it is in the log."""
        try:
            async with asyncio.timeout(self._service._longest):
                return await self._work(one, send)
        except asyncio.CancelledError as error:
            self._service.failed(one, error)
            raise
        except Exception as error:
            refusal = self._service.failed(one, error)
            if one.begun_telling:  # the connection ends in the middle
                return None
            raise refusal from None


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _without_nulls(found: Any) -> Any:
    """Parameters that are given as nothing are not given: clients send back what they were told."""
    if isinstance(found, dict):
        return {name: _without_nulls(value) for name, value in found.items() if value is not None}
    return [_without_nulls(value) for value in found] if isinstance(found, list) else found


def _number(value: float) -> float | None:
    return None if value != value else value


def _place_of(error: BaseException) -> Any:
    """Where an error was raised, without what it says, which may be a question."""
    bare = RuntimeError("(not shown)").with_traceback(error.__traceback__)
    return (RuntimeError, bare, error.__traceback__)
