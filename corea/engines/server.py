r"""A server that speaks OpenAI's API, as an engine: ``vllm serve``, or a hosted model.

OpenAI's own client makes the requests: it waits and asks again after 408, 409, 429, 5xx, a lost
connection or a time-out, and heeds ``Retry-After``. What is decided here:

1. Each completion is a request of its own, with a seed drawn from the sampling's seed, the prompt
   and the number of the sample. So a completion that failed can be asked for alone, and neither
   the order of the prompts nor how many are asked at once decides what is asked. ``vllm serve``
   without a GPU needs ``--no-enable-chunked-prefill`` for seeds (choice 8 of
   :mod:`corea.engines.vllm_engine`).
2. An answer that is cut, no JSON or not what was expected counts as a lost connection. What still
   fails, and what the server refuses (400, 422), is a rollout with an ``error``.
3. What no question can change ends the evaluation at once: a key that is not accepted (401, 403),
   a model that is not there (404), or an address that sends requests elsewhere (3xx; no redirect
   is followed). So do as many failures in a row as requests are made at once. Parts of the
   evaluation that were answered are kept.
4. ``top_p`` is sent as 1, and vLLM is told to leave its other filters off, which a model's own
   generation config may set (:data:`VLLM_BODY`).
5. Log-probabilities are taken where the server gives them. vLLM's are those of temperature 1
   (its ``logprobs-mode`` is ``raw_logprobs`` unless it is told otherwise). Those of an answer are
   missing as a whole if one of them is not a number from :data:`LOWEST_LOGPROB` to 0: ``null``,
   NaN, or minus infinity, which a token that was drawn cannot have. The answer counts without.
6. The address and the key come from ``OPENAI_BASE_URL`` and ``OPENAI_API_KEY`` (or the variable
   ``key_from``) and are written nowhere; OpenAI's client is not given the key. Where a server says
   the key, or the user and password of an address, they are taken out of completions, errors and
   the log of httpx2; what has fewer than six characters (``EMPTY``) is taken for no secret.
7. The server encodes prompts with the tokenizer it reads, and transformers' ``AutoTokenizer`` reads
   that of a Qwen2 model with a tokenizer of its own as Qwen2's. So for a model whose tokenizer is
   at hand, prompts can be sent to vLLM as the ids that our own tokenizer makes of them.
8. Whatever a server does, a request ends within ``timeout``, its answer has at most
   :data:`MAX_BODY` bytes (unpacked, if it was packed), and a reason at most 300 characters.
   Cookies are not kept.
9. A service asks one question at a time, for as long as it runs: :meth:`ServerEngine.ask` and
   :meth:`ServerEngine.stream` give a failed rollout where :meth:`ServerEngine.generate` would end
   all of it, and ask again a server that failed before. They take a whole conversation too.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import logging
import os
import re
import threading
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from http.cookiejar import CookieJar, DefaultCookiePolicy
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import SplitResult, quote, unquote, urlsplit
from weakref import WeakKeyDictionary

import httpx2
import numpy as np
import openai
from numpy.typing import NDArray

from corea.checks import whole
from corea.engines.base import (
    LONE_SURROGATE,
    MAX_TOKENS,
    Rollout,
    Sampling,
    request_seed,
    wanted_samples,
)
from corea.engines.prompts import chat_prompt, encode_prompts
from corea.records import json_object

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VLLM_BODY: Mapping[str, Any] = MappingProxyType(
    {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
)
"""What is sent to vLLM beyond OpenAI's parameters; a hosted model may refuse it: send nothing."""

MAX_BODY = 32 * 2**20
"""Bytes above which an answer is not read: 250,000 tokens with their log-probabilities."""

MAX_BRACKETS = 2**21
"""Opening brackets above which an answer is not parsed: an empty list is 2 bytes, in memory 64."""

LOWEST_LOGPROB = -1e6
"""Log-probability below which none is believed; servers write -9999 for minus infinity."""

_LONGEST_REASON = 300
_SHORTEST_SECRET = 6
_ROUNDING = 1e-3  # by which a log-probability may exceed 0
_LOGGERS = ("httpx2", *(f"httpcore2.{part}" for part in ("connection", "http11", "proxy", "socks")))

_WRONG = (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError)

Result = TypeVar("Result")

Prompt = str | Sequence[int] | Sequence[Mapping[str, str]]
"""A user's message or a text, the ids of one, or the messages of a conversation."""

_alone = threading.Lock()  # what two threads are not to do at once


class ServerError(Exception):
    """A server cannot be used; says why, and what to do."""


class AddressError(ValueError):
    """An address or a key that no request can be sent with; does not show it."""


class _Unusable(httpx2.RequestError):
    """An answer that is none; OpenAI's client takes it for a lost connection."""


class _Refused(Exception):
    """A failure of this request alone that will not pass."""


@dataclass(frozen=True, eq=False)
class ServerEngine:
    """Asks an OpenAI-compatible server, many requests at once; an :class:`Engine`.

    Connections are left open until :meth:`close`.

    Example:
        >>> ServerEngine("Qwen/Qwen2.5-7B-Instruct", "http://localhost:8000/v1").batch_size
        64
    """

    model: str  # name under which the server has it
    # of the API, with its /v1 and maybe a user and password; OPENAI_BASE_URL when empty
    url: str = field(default="", repr=False)
    concurrency: int = 64  # requests at once
    chat: bool = True  # a prompt is a user's message; otherwise the text to go on with
    timeout: float = 600.0  # seconds within which the whole of an answer is there
    attempts: int = 8  # how often a request is made; eight take half a minute of waiting
    logprobs: bool = True  # whether they are asked for
    body: Mapping[str, Any] = field(default_factory=lambda: VLLM_BODY)  # beside OpenAI's parameters
    # prompts are sent as its ids (choice 7), in its chat template if `chat`; only vLLM takes them
    tokenizer: PreTrainedTokenizerBase | None = None
    key_from: str = "OPENAI_API_KEY"  # the environment variable that holds the key

    def __post_init__(self) -> None:
        """Check the values, the address and the key, without showing the key."""
        if not self.model:
            raise ValueError("model is empty; expected the name that the server has it under")
        for name in ("concurrency", "attempts"):
            whole(getattr(self, name), name, 1)
        if not 0 < self.timeout < np.inf:
            raise ValueError(f"timeout is {self.timeout!r}; expected seconds above 0")
        address = self._address
        _require_sendable(self._key, self.key_from)
        if self._key and address.username:
            raise AddressError(
                f"the address has a user, and {self.key_from} is set: a request can carry one of "
                "them"
            )
        if self.tokenizer and self.chat and not self.tokenizer.chat_template:
            raise ValueError("chat is True, but the tokenizer has no chat template")

    @cached_property
    def _address(self) -> SplitResult:
        return _split((self.url or os.environ.get("OPENAI_BASE_URL", "")).rstrip("/"))

    @cached_property
    def _key(self) -> str:
        return os.environ.get(self.key_from, "")

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the model's name and what else decides a request."""
        asked = ["server", self.model, self.chat, self.logprobs, dict(self.body)]
        if self.tokenizer:
            asked += [len(self.tokenizer), self.tokenizer.chat_template]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    @property
    def batch_size(self) -> int:
        """Completions it works on at once."""
        return self.concurrency

    @property
    def parts_at_once(self) -> int:
        """Parts of an evaluation to be asked at once, so that the last of one wait for none."""
        return 4

    @property
    def gives_expected_confidence(self) -> bool:
        """No: a server scores no text but the one that it writes."""
        return False

    @cached_property
    def _secrets(self) -> _Secrets:
        return _Secrets(self._key, self._address)

    @cached_property
    def _clients(self) -> WeakKeyDictionary[asyncio.AbstractEventLoop, openai.AsyncOpenAI]:
        """Connections belong to an event loop, so each has a client of its own."""
        return WeakKeyDictionary()

    @property
    def _client(self) -> openai.AsyncOpenAI:
        """That of the running event loop."""
        loop = asyncio.get_running_loop()
        with _alone:
            if loop not in self._clients:
                self._clients[loop] = self._new_client()
            return self._clients[loop]

    def _new_client(self) -> openai.AsyncOpenAI:
        user = ":".join(_user(self._address))
        authorization = f"Bearer {self._key}" if self._key else ""
        if self._address.username:
            authorization = f"Basic {base64.b64encode(user.encode()).decode()}"
        for name in _LOGGERS:
            logging.getLogger(name).addFilter(self._secrets)
        place = self._address._replace(netloc=self._address.netloc.rpartition("@")[2]).geturl()
        return openai.AsyncOpenAI(
            api_key="-",  # each request is given the key by the client below, nothing else has it
            base_url=place,
            max_retries=self.attempts - 1,
            timeout=httpx2.Timeout(self.timeout, connect=min(10.0, self.timeout)),
            http_client=_Limited(authorization, self._secrets, self.concurrency),
        )

    @cached_property
    def _running(self) -> tuple[asyncio.AbstractEventLoop, threading.Thread]:
        """An event loop in a thread of its own: a notebook's thread has another one."""
        runner = asyncio.Runner()
        loop = runner.get_loop()

        def run() -> None:
            with runner:  # which in the end cancels what is left
                loop.run_forever()

        thread = threading.Thread(target=run, name="corea-server", daemon=True)
        thread.start()
        return loop, thread

    @cached_property
    def _places(self) -> asyncio.Semaphore:
        return asyncio.Semaphore(self.concurrency)

    @cached_property
    def _health(self) -> _Health:
        return _Health(self.concurrency)

    def generate(
        self,
        prompts: Sequence[str],
        sampling: Sampling,
        *,
        pooled_states: bool = False,
        confidence_grid: Sequence[str] = (),
        samples: Sequence[Sequence[int]] | None = None,
    ) -> list[list[Rollout]]:
        """As :meth:`Engine.generate`; a rollout that failed has an ``error``.

        Several threads may ask at once. A ServerError ends all of it (choice 3).
        """
        for name, asked in (
            ("pooled_states", pooled_states),
            ("confidence_grid", confidence_grid),
            ("greedy_after", sampling.greedy_after),
        ):
            if asked:
                raise ValueError(f"{name} is not to be had from a server; use a model of your own")
        self._health.require()
        wanted = wanted_samples(prompts, sampling, samples)
        encoded = self._encoded(prompts)
        asked_for = [(encoded[i], request_seed(prompts[i], n, sampling)) for i, n in wanted]
        rollouts: list[list[Rollout]] = [[] for _ in prompts]
        made = self._wait_for(self._ask_all(asked_for, sampling))
        for (i, _), rollout in zip(wanted, made, strict=True):
            rollouts[i].append(rollout)
        return rollouts

    def close(self) -> None:
        """Give up connections; the engine is not to be used again."""
        if running := vars(self).pop("_running", None):
            loop, thread = running
            asyncio.run_coroutine_threadsafe(self.close_here(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
        for name in _LOGGERS:
            logging.getLogger(name).removeFilter(self._secrets)

    async def close_here(self) -> None:
        """Give up the connections of the running event loop, which may open others."""
        if client := self._clients.pop(asyncio.get_running_loop(), None):
            await client.close()

    async def ask(self, prompt: Prompt, sampling: Sampling, seed: int) -> Rollout:
        """One completion, on the event loop that awaits it; choice 9.

        How many are asked at once is for the caller to limit, and so is the time of all attempts.
        """
        try:
            return await self._request(prompt, sampling, seed)
        except (_Refused, openai.APIError) as caught:
            return _failed(self._told(caught))

    async def stream(
        self, prompt: Prompt, sampling: Sampling, seed: int
    ) -> AsyncGenerator[str | Rollout, None]:
        """The text of one completion as it comes, and in the end its rollout; choice 9.

        No log-probabilities are asked for. What may be the beginning of a secret is held back
        until it is known to be none.
        """
        path, asked = self._body(prompt, sampling, seed)
        asked.pop("logprobs", None)
        asked |= {"stream": True, "stream_options": {"include_usage": True}}
        clock = asyncio.get_running_loop().time
        deadline, answer = clock() + self.timeout, None
        told, whole, pending = "", _Parts(), ""
        try:
            async with asyncio.timeout_at(deadline):
                answer = await self._client.post(
                    path,
                    cast_to=object,
                    body=asked,
                    stream=True,
                    stream_cls=openai.AsyncStream[object],
                )
            while True:
                async with asyncio.timeout_at(deadline):
                    part = await anext(answer, None)
                if part is None:
                    break
                pending += whole.add(part)
                held = self._secrets.begun(pending)
                ready, pending = pending[: len(pending) - held], pending[len(pending) - held :]
                if ready:
                    yield self._secrets.hidden(ready)
            if pending:
                yield self._secrets.hidden(pending)
            rollout = _read(whole.content(), chat=True)
        except TimeoutError:
            told = f"no whole answer within {self.timeout:g} s"
        except (_Refused, openai.APIError) as caught:
            told = self._told(caught)
        except _WRONG as error:
            told = self._secrets.told(
                f"the answer is not what was expected ({type(error).__name__}: {error})"
            )
        finally:
            if answer is not None:
                await answer.close()
        if told:
            yield _failed(told)
        else:
            yield replace(rollout, completion=self._secrets.hidden(rollout.completion))

    def models(self) -> list[str]:
        """Names of the models that the server lists; none if it does not list them."""
        return self._wait_for(self._models())

    def _wait_for(self, work: Coroutine[Any, Any, Result]) -> Result:
        with _alone:
            loop, _ = self._running
        future = asyncio.run_coroutine_threadsafe(work, loop)
        try:
            return future.result()
        except BaseException:  # an interrupt of this thread ends the work too
            future.cancel()
            raise

    def _encoded(self, prompts: Sequence[str]) -> Sequence[str | list[int]]:
        """What is sent of each prompt."""
        if self.tokenizer is None:
            return prompts
        with _alone:
            if self.chat:
                prompts = [chat_prompt(self.tokenizer, prompt) for prompt in prompts]
            return encode_prompts(self.tokenizer, prompts)

    async def _ask_all(
        self, asked: Sequence[tuple[str | list[int], int]], sampling: Sampling
    ) -> list[Rollout]:
        tasks = [asyncio.create_task(self._ask(prompt, sampling, seed)) for prompt, seed in asked]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _ask(self, prompt: str | list[int], sampling: Sampling, seed: int) -> Rollout:
        """One completion, or a rollout with an error."""
        async with self._places:
            self._health.require()
            try:
                rollout = await self._request(prompt, sampling, seed)
            except (_Refused, openai.APIError) as caught:
                failure: Exception = caught
            else:
                self._health.answered()
                return rollout
            # raised out here, an error does not hang on to one of the client's
            told = self._told(failure)
            status = getattr(failure, "status_code", 0)
            if 300 <= status < 400 or status in (401, 403, 404):
                self._health.end(await self._unfit(status, told))
            elif isinstance(failure, openai.APIConnectionError) or _may_pass(status):
                told = f"{told} ({self.attempts} attempts)"
                self._health.failed(told)
            self._health.require()
            return _failed(told)

    async def _request(self, prompt: Prompt, sampling: Sampling, seed: int) -> Rollout:
        path, asked = self._body(prompt, sampling, seed)
        # not `chat.completions.create`, which looks at each part of a body that is plain already
        answer = await self._client.post(path, cast_to=httpx2.Response, body=asked)
        rollout: Rollout = answer.extensions["rollout"]
        return rollout

    def _body(self, prompt: Prompt, sampling: Sampling, seed: int) -> tuple[str, dict[str, Any]]:
        """Where a completion is asked for, and with what."""
        if isinstance(prompt, str):
            [prompt] = self._encoded([prompt])
        asked: dict[str, Any] = {
            "model": self.model,
            "temperature": sampling.temperature,
            "top_p": 1.0,
            "max_tokens": sampling.max_completion_tokens,
            "seed": seed,
            **self.body,
        }
        if not isinstance(prompt, str) and prompt and isinstance(prompt[0], Mapping):
            path, asked["messages"] = "/chat/completions", prompt
        elif self.chat and isinstance(prompt, str):
            path = "/chat/completions"
            asked["messages"] = [{"role": "user", "content": prompt}]
        else:
            path, asked["prompt"] = "/completions", prompt
        if self.logprobs:
            asked["logprobs"] = True if "messages" in asked else 1
        return path, asked

    async def _models(self) -> list[str]:
        client = self._client.with_options(max_retries=0, timeout=min(30.0, self.timeout))
        try:
            answer = await client.get("/models", cast_to=httpx2.Response)
            listed = [entry["id"] for entry in _parsed(answer.content)["data"]]
        except openai.APIError as caught:
            failure = caught
        except _WRONG:
            return []
        else:
            return [self._secrets.told(name) for name in listed if isinstance(name, str)]
        if isinstance(failure, openai.APIStatusError):
            if 300 <= failure.status_code < 400:
                raise await self._unfit(failure.status_code, self._told(failure))
            return []
        raise ServerError(
            f"the server cannot be reached ({self._told(failure)}). Start it, or set "
            "OPENAI_BASE_URL to its address"
        )

    def _told(self, failure: Exception) -> str:
        """Why a request failed, in a line without secrets."""
        if isinstance(failure, openai.APIStatusError):
            status, answer = failure.status_code, failure.response
            if 300 <= status < 400:
                place = answer.headers.get("Location", "").partition("?")[0]
                return self._secrets.told(f"HTTP {status}: elsewhere, at {place}")
            return self._secrets.told(f"HTTP {status}: {answer.content.decode('utf-8', 'replace')}")
        cause = failure.__cause__ or failure
        if isinstance(cause, _Unusable | _Refused | httpx2.ReadTimeout):
            return self._secrets.told(str(cause))
        return self._secrets.told(f"{type(cause).__name__}: {cause}".strip(": "))

    async def _unfit(self, status: int, told: str) -> ServerError:
        """What to do about a server that no question can be put to."""
        if status == 404:
            listed = ", ".join(await self._models())[:_LONGEST_REASON] or "none that it lists"
            return ServerError(f"{told}. It has these models: {listed}; asked for {self.model}")
        if status in (401, 403):
            return ServerError(f"{told}. Set {self.key_from} to a key that the server accepts")
        return ServerError(
            f"{told}. Set OPENAI_BASE_URL to the address that answers itself, with its /v1"
        )


class _Limited(httpx2.AsyncClient):
    """Sends what OpenAI's client makes; its answers are whole, in time, of bounded length."""

    def __init__(self, authorization: str, secrets: _Secrets, concurrency: int) -> None:
        super().__init__(
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=concurrency),
        )
        self._authorization, self._secrets = authorization, secrets

    async def send(
        self, request: httpx2.Request, *, stream: bool = False, **_: Any
    ) -> httpx2.Response:
        request.headers.pop("Authorization", None)
        if self._authorization:
            request.headers["Authorization"] = self._authorization
        request.headers["Accept-Encoding"] = "identity"  # packed answers are unpacked here
        seconds = request.extensions["timeout"]["read"]
        try:
            async with asyncio.timeout(seconds):
                answer = await super().send(request, stream=True, follow_redirects=False)
                if stream and answer.status_code == 200:
                    packed = answer.headers.get("Content-Encoding", "identity") != "identity"
                    parts = _Counted(answer, packed)
                    return httpx2.Response(200, stream=parts, request=request)
                try:
                    content = await _limited(answer)
                finally:
                    await answer.aclose()
        except (TimeoutError, httpx2.ReadTimeout, httpx2.WriteTimeout):
            raise httpx2.ReadTimeout(f"no whole answer within {seconds:g} s") from None
        extensions: dict[str, Any] = {}
        if not answer.is_success:
            content = content[: 100 * _LONGEST_REASON]
        elif request.method == "POST":
            extensions["rollout"] = self._rollout(answer, content, request)
        kept = ("Retry-After", "Location")
        headers = {name: answer.headers[name] for name in kept if name in answer.headers}
        more: dict[str, Any] = {"content": content, "request": request, "extensions": extensions}
        return httpx2.Response(answer.status_code, headers=headers, **more)

    def _rollout(self, answer: httpx2.Response, content: bytes, request: httpx2.Request) -> Rollout:
        if answer.status_code != 200:
            raise _Refused(f"HTTP {answer.status_code}")
        try:
            rollout = _read(_parsed(content), chat=request.url.path.endswith("/chat/completions"))
        except _WRONG as error:
            told = f"the answer is not what was expected ({type(error).__name__}: {error})"
        else:
            return replace(rollout, completion=self._secrets.hidden(rollout.completion))
        raise _Unusable(told)


class _Counted(httpx2.AsyncByteStream):
    """What a server streams, up to a bound."""

    def __init__(self, answer: httpx2.Response, packed: bool) -> None:
        self._answer, self._packed = answer, packed

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._packed:
            raise _Unusable("the answer is packed, though that was not asked for")
        size = 0
        async for part in self._answer.aiter_raw():
            size += len(part)
            _require_length(size)
            yield part

    async def aclose(self) -> None:
        await self._answer.aclose()


class _Parts:
    """What a streamed completion says, put together as if it had come at once."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._reason: object = None
        self._usage: object = None

    def add(self, part: Any) -> str:
        """Take in one event; the text in it, if any."""
        self._usage = part.get("usage") or self._usage
        if not part["choices"]:
            return ""
        [choice] = part["choices"]
        self._reason = choice.get("finish_reason") or self._reason
        text = choice["delta"].get("content") if "delta" in choice else choice["text"]
        if not isinstance(text, str | None):
            raise TypeError(f"a part of the completion is {type(text).__name__}")
        if LONE_SURROGATE.search(text or ""):
            raise ValueError("the completion has half of a surrogate pair")
        self._texts.append(text or "")
        return text or ""

    def content(self) -> dict[str, Any]:
        """The answer to a request that does not stream."""
        message = {"content": "".join(self._texts)}
        choice = {"message": message, "finish_reason": self._reason}
        return {"choices": [choice], "usage": self._usage}


class _Secrets(logging.Filter):
    """Takes a key, or an address's user and password, out of texts and of what is logged."""

    def __init__(self, key: str, address: SplitResult) -> None:
        super().__init__()
        user, password = _user(address)
        secrets = [key, password, f"{user}:{password}" if password else user]
        forms = {
            form
            for secret in secrets
            if len(secret) >= _SHORTEST_SECRET
            for form in (
                secret,
                quote(secret, safe=""),
                json.dumps(secret)[1:-1],
                base64.b64encode(secret.encode()).decode(),
            )
        }
        self._forms = tuple(forms)
        full = [re.escape(form) for form in sorted(forms, key=len, reverse=True)]
        # half of it, from its start, and what goes on: a server may cut it
        begun = [
            re.escape(form[: max(12, len(form) // 2)]) + r"[\w.~+/=%-]*"
            for form in sorted(forms, key=len, reverse=True)
        ]
        self._found = re.compile("|".join([*full, *begun]) or r"(?!)")

    def hidden(self, text: str) -> str:
        """The text without them."""
        return self._found.sub("[secret]", text)

    def begun(self, text: str) -> int:
        """How many characters at the end of a text may be the beginning of one of them."""
        longest = min(max(map(len, self._forms), default=0), len(text))
        ends = (n for n in range(longest, 0, -1) if text[-n] in {form[0] for form in self._forms})
        return next((n for n in ends if any(f.startswith(text[-n:]) for f in self._forms)), 0)

    def told(self, text: str) -> str:
        """A reason: one printable line of bounded length, without them."""
        line = " ".join(self.hidden(text).split())
        return "".join(c if c.isprintable() else "?" for c in line[:_LONGEST_REASON])

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = self.hidden(record.getMessage()), ()
        return True


class _Health:
    """Whether a server is still to be asked; written by the thread of the event loop alone."""

    def __init__(self, limit: int) -> None:
        self._limit, self._in_a_row = limit, 0
        self._error: ServerError | None = None

    def answered(self) -> None:
        self._in_a_row = 0

    def failed(self, why: str) -> None:
        self._in_a_row += 1
        if self._in_a_row >= self._limit:
            self.end(
                ServerError(
                    f"{self._in_a_row} requests in a row were not answered, the last because of "
                    f"{why}. The parts that were answered are kept: run it again when the "
                    "server is back"
                )
            )

    def end(self, error: ServerError) -> None:
        self._error = self._error or error

    def require(self) -> None:
        """Refuse to ask a server that was given up."""
        if self._error is not None:
            raise ServerError(str(self._error))


def _split(address: str) -> SplitResult:
    """The parts of an address of a server; an error does not show it."""
    if address.isprintable() and not set(address) & set("?# "):
        with contextlib.suppress(ValueError):  # a port that is no number
            parts = urlsplit(address)
            if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
                return parts
    raise AddressError(
        "no address of a server: set OPENAI_BASE_URL, such as http://localhost:8000/v1 (without ?, "
        "# and white space)"
    )


def _user(address: SplitResult) -> tuple[str, str]:
    return unquote(address.username or ""), unquote(address.password or "")


def _require_sendable(key: str, name: str) -> None:
    """Refuse a key that no header can carry, without showing it."""
    if wrong := re.search(r"[^!-~]", key):
        found = "white space" if wrong[0].isspace() else "not printable ASCII"
        raise AddressError(
            f"{name} cannot be sent: U+{ord(wrong[0]):04X} in it ({found}). Set it without "
            "what does not belong to the key"
        )


def _may_pass(status: int) -> bool:
    """Whether OpenAI's client asks again after a status."""
    return status in (408, 409, 429) or status >= 500


async def _limited(answer: httpx2.Response) -> bytes:
    """The content of an answer, unpacked, of bounded length."""
    parts, size = [], 0
    async for part in answer.aiter_raw():
        parts.append(part)
        size += len(part)
        _require_length(size)
    content = b"".join(parts)
    packing = answer.headers.get("Content-Encoding", "identity").strip().lower()
    if packing == "identity":
        return content
    if packing not in ("gzip", "x-gzip", "deflate"):
        raise _Unusable("the answer is packed, though that was not asked for")
    unpacking = zlib.decompressobj(zlib.MAX_WBITS | 32)  # whichever of them it is
    try:
        content = unpacking.decompress(content, MAX_BODY + 1)
    except zlib.error as error:
        raise _Unusable(f"the answer is not {packing} ({error})") from None
    _require_length(len(content))
    if not unpacking.eof:
        raise _Unusable(f"the answer is {packing} that was cut")
    return content


def _require_length(size: int) -> None:
    if size > MAX_BODY:
        raise _Unusable(f"the answer has more than {MAX_BODY:,} bytes")


def _parsed(content: bytes) -> Any:
    """The JSON of an answer: an object, not nested too deep, that names no field twice."""
    if content.count(b"[") + content.count(b"{") > MAX_BRACKETS:
        raise ValueError(f"more than {MAX_BRACKETS:,} brackets")
    return json_object(content.decode("utf-8-sig"))


def _failed(error: str) -> Rollout:
    return Rollout("", None, None, finished=False, prompt_tokens=0, error=error)


def _read(content: Any, *, chat: bool) -> Rollout:
    """The rollout in an answer; raises where it is not one."""
    [choice] = content["choices"]
    text = choice["message"]["content"] if chat else choice["text"]
    reason = choice.get("finish_reason")
    if reason not in ("stop", "length"):
        raise _Refused(f"it ended because of {reason!r}")
    text = "" if text is None else text  # nothing was written before the end
    if not isinstance(text, str):
        raise TypeError(f"the completion is {type(text).__name__}")
    if LONE_SURROGATE.search(text):
        raise ValueError("the completion has half of a surrogate pair")
    tokens = [content["usage"][name] for name in ("prompt_tokens", "completion_tokens")]
    if any(type(n) is not int or not 0 <= n <= MAX_TOKENS for n in tokens):
        raise ValueError(f"usage is {tokens!r}")
    logprobs = _logprobs(choice, chat=chat)
    return Rollout(text, None, logprobs, reason == "stop", tokens[0], n_tokens=tokens[1])


def _logprobs(choice: dict[str, Any], *, chat: bool) -> NDArray[np.float32] | None:
    """Log-probabilities of the tokens; None where they are not there, or one is none (choice 5)."""
    try:
        listed = choice["logprobs"]["content" if chat else "token_logprobs"]
        values = [entry["logprob"] for entry in listed] if chat else list(listed)
    except (KeyError, TypeError):
        return None
    if not all(type(v) in (int, float) and LOWEST_LOGPROB <= v <= _ROUNDING for v in values):
        return None
    return np.minimum(np.array(values, dtype=np.float32), 0.0) if values else None
