r"""A server that speaks OpenAI's API, as an engine: ``vllm serve``, or a hosted model.

:class:`ServerEngine` is an :class:`corea.engines.base.Engine`. What is decided here:

1. Each completion is a request of its own, with a seed drawn from the sampling's seed, the prompt
   and the number of the sample. So a completion that failed can be asked for alone, and neither
   the order of the prompts nor how many are asked at once decides what is asked.
2. A request that fails for a reason that may pass (no connection, out of time, 408, 409, 425, 429,
   5xx, a body that is cut, no JSON or not what was expected) is made again, after a wait that
   doubles and is as long as a ``Retry-After`` says, but at most a minute. What still fails, and
   what the server refuses (any other status, such as 400 or 422), is a rollout with an ``error``
   and without a completion.
3. What no question can change ends the evaluation at once: a key that is not accepted (401, 403),
   a model that is not there (404), or an address from which requests are sent elsewhere (3xx). So
   does a server that answered none of as many requests in a row as are made at once. Parts of the
   evaluation that were answered are kept.
4. ``top_p`` is sent as 1, and vLLM is told to leave its other filters off, which a model's own
   generation config may set (:data:`VLLM_BODY`).
5. Log-probabilities are taken where the server gives them. vLLM's are those of temperature 1
   (its ``logprobs-mode`` is ``raw_logprobs`` unless it is told otherwise). Those of an answer are
   missing as a whole if one of them is not a number from :data:`LOWEST_LOGPROB` to 0: ``null``,
   NaN, or minus infinity, which a token that was drawn cannot have. The answer counts without.
6. The address and the key come from ``OPENAI_BASE_URL`` and ``OPENAI_API_KEY``, as for OpenAI's
   own client, and are written nowhere. A key that no header can carry is refused without being
   shown. Where a server says the key, or the user and password of an address, they are taken out
   of completions, errors and the log of httpx; what has fewer than six characters (``EMPTY``)
   is taken for no secret.
7. The server encodes prompts with the tokenizer it reads, and transformers' ``AutoTokenizer`` reads
   that of a Qwen2 model with a tokenizer of its own as Qwen2's. So for a model whose tokenizer is
   at hand, prompts can be sent to vLLM as the ids that our own tokenizer makes of them.
8. Whatever a server does, a request ends within ``timeout`` and the time it takes to connect, its
   answer has at most :data:`MAX_BODY` bytes (unpacked, if it was packed), and a reason at most 300
   characters. httpx's own limits of time are those of single reads and writes; here each has what
   the request has left. Cookies are not kept.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import logging
import os
import re
import threading
import time
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from http.cookiejar import CookieJar, DefaultCookiePolicy
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, quote, unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

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
    import httpx
    from tenacity import RetryCallState
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

_PASSING = {408, 409, 425, 429}
_LONGEST_WAIT = 60.0
_LONGEST_REASON = 300
_SHORTEST_SECRET = 6
_PIECE = 2**14  # bytes sent at once
_ROUNDING = 1e-3  # by which a log-probability may exceed 0
_LOGGERS = ("httpx", *(f"httpcore.{part}" for part in ("connection", "http11", "proxy", "socks")))

_WRONG = (ValueError, KeyError, IndexError, TypeError, AttributeError)

_alone = threading.Lock()  # what two threads are not to do at once


class ServerError(Exception):
    """A server cannot be used; says why, and what to do."""


class _Retry(Exception):
    """A failure that may pass."""

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


class _Refused(Exception):
    """A failure of this request alone that will not pass."""


@dataclass(frozen=True, eq=False)
class ServerEngine:
    """Asks an OpenAI-compatible server, many requests at once.

    Attributes:
        model: Name under which the server has the model.
        url: Address of the API, with its ``/v1``; ``OPENAI_BASE_URL`` when empty. A user and
            password in it are sent as such.
        concurrency: Requests at once, from 1.
        chat: Whether a prompt is a user's message, which the server puts into the chat template;
            otherwise it is the text to go on with.
        timeout: Seconds within which the whole of an answer is there, or the request has failed.
        attempts: How often a request is made, from 1.
        first_wait: Seconds before the second attempt.
        logprobs: Whether log-probabilities are asked for.
        body: Sent beside OpenAI's parameters.
        tokenizer: The model's, where prompts are to be sent as its ids (choice 7), in its chat
            template if ``chat``; vLLM takes ids, a hosted model does not.

    A cached connection is left open until :meth:`close`.

    Example:
        >>> ServerEngine("Qwen/Qwen2.5-7B-Instruct", "http://localhost:8000/v1").batch_size
        64
    """

    model: str
    url: str = field(default="", repr=False)
    concurrency: int = 64
    chat: bool = True
    timeout: float = 600.0
    attempts: int = 6
    first_wait: float = 1.0
    logprobs: bool = True
    body: Mapping[str, Any] = field(default_factory=lambda: VLLM_BODY)
    tokenizer: PreTrainedTokenizerBase | None = None

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: If one is out of range, there is no address, or the key cannot be sent.
        """
        if not self.model:
            raise ValueError("model is empty; expected the name that the server has it under")
        for name in ("concurrency", "attempts"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} is {value!r}; expected a whole number from 1")
        if not (0 < self.timeout < np.inf and self.first_wait >= 0):
            raise ValueError(f"timeout is {self.timeout!r} and first_wait {self.first_wait!r}")
        address = self._address
        _require_sendable(self._key)
        if self._key and address.username:
            raise ValueError(
                "the address has a user, and OPENAI_API_KEY is set: a request can carry one of them"
            )
        if self.tokenizer and self.chat and not self.tokenizer.chat_template:
            raise ValueError("chat is True, but the tokenizer has no chat template")

    @cached_property
    def _address(self) -> SplitResult:
        return _split((self.url or os.environ.get("OPENAI_BASE_URL", "")).rstrip("/"))

    @cached_property
    def _key(self) -> str:
        return os.environ.get("OPENAI_API_KEY", "")

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
    def _client(self) -> httpx.Client:
        import httpx

        # packed answers are unpacked here, within a limit
        headers = {"Accept-Encoding": "identity"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        for name in _LOGGERS:
            logging.getLogger(name).addFilter(self._secrets)
        return httpx.Client(
            headers=headers,
            auth=_user(self._address) if self._address.username else None,
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            timeout=httpx.Timeout(self.timeout, connect=min(10.0, self.timeout)),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=self.concurrency),
        )

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.concurrency, thread_name_prefix="corea-server")

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
        """Complete each prompt ``sampling.n_samples`` times; several threads may ask at once.

        Args:
            prompts: Texts, length n.
            sampling: How.
            pooled_states: Not to be had from a server.
            confidence_grid: Not to be had from a server.
            samples: Numbers of the samples wanted of each prompt; all when None.

        Returns:
            The rollouts of each prompt, in the order of the prompts; what failed has an ``error``.

        Raises:
            ValueError: If something is asked for that a server cannot give.
            ServerError: If the server cannot be used; choice 3 of this module.
        """
        for name, asked in (
            ("pooled_states", pooled_states),
            ("confidence_grid", confidence_grid),
            ("greedy_after", sampling.greedy_after),
        ):
            if asked:
                raise ValueError(f"{name} is not to be had from a server; use a model of your own")
        with _alone:
            threads, health, _ = self._threads, self._health, self._client
        health.require()
        wanted = wanted_samples(prompts, sampling, samples)
        said = self._encoded(prompts)
        futures: list[Future[Rollout]] = [
            threads.submit(self._ask, said[i], sampling, request_seed(prompts[i], number, sampling))
            for i, number in wanted
        ]
        try:
            made = [future.result() for future in futures]
        except BaseException:
            for future in futures:
                future.cancel()
            raise
        rollouts: list[list[Rollout]] = [[] for _ in prompts]
        for (i, _), rollout in zip(wanted, made, strict=True):
            rollouts[i].append(rollout)
        return rollouts

    def close(self) -> None:
        """Give up connections and threads; the engine is not to be used again."""
        if "_threads" in vars(self):
            self._threads.shutdown(cancel_futures=True)
        if "_client" in vars(self):
            self._client.close()
            for name in _LOGGERS:
                logging.getLogger(name).removeFilter(self._secrets)

    def models(self) -> list[str]:
        """Names of the models that the server has.

        Returns:
            The names; a server that does not list them has none.

        Raises:
            ServerError: If it cannot be reached, or sends requests elsewhere.
        """
        try:
            answer, content = self._fetch("GET", "models", min(30.0, self.timeout))
        except _Retry as error:
            failed = str(error)
        else:
            self._require_here(answer)
            try:
                listed = [entry["id"] for entry in _parsed(content)["data"]]
            except (ValueError, KeyError, TypeError):
                return []
            return [self._secrets.told(name) for name in listed if isinstance(name, str)]
        raise ServerError(
            f"the server cannot be reached ({failed}). Start it, or set OPENAI_BASE_URL to its "
            "address"
        )

    def _encoded(self, prompts: Sequence[str]) -> Sequence[str | list[int]]:
        """What is sent of each prompt."""
        if self.tokenizer is None:
            return prompts
        with _alone:
            if self.chat:
                prompts = [chat_prompt(self.tokenizer, prompt) for prompt in prompts]
            return encode_prompts(self.tokenizer, prompts)

    def _ask(self, prompt: str | list[int], sampling: Sampling, seed: int) -> Rollout:
        """One completion, or a rollout with an error."""
        import tenacity

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_Retry),
            stop=tenacity.stop_after_attempt(self.attempts),
            wait=self._wait,
            reraise=True,
        )
        self._health.require()
        try:
            rollout = retrying(self._request, prompt, sampling, seed)
        except _Refused as error:
            return _failed(str(error))
        except _Retry as error:
            failed = str(error)
        except ServerError as error:
            self._health.end(error)
            raise
        else:
            self._health.answered()
            return rollout
        self._health.failed(failed)
        self._health.require()
        return _failed(f"{failed} ({self.attempts} attempts)")

    def _wait(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = error.wait if isinstance(error, _Retry) else 0.0
        doubled = self.first_wait * 2.0 ** (state.attempt_number - 1)
        # requests that failed together do not come back together
        spread = float(np.random.default_rng().uniform(0.75, 1.25))
        return min(_LONGEST_WAIT, max(asked, doubled * spread))

    def _request(self, prompt: str | list[int], sampling: Sampling, seed: int) -> Rollout:
        body = {
            "model": self.model,
            "temperature": sampling.temperature,
            "top_p": 1.0,
            "max_tokens": sampling.max_completion_tokens,
            "seed": seed,
            **self.body,
        }
        chat = self.chat and isinstance(prompt, str)
        if chat:
            body["messages"] = [{"role": "user", "content": prompt}]
            body |= {"logprobs": True} if self.logprobs else {}
        else:
            body["prompt"] = prompt
            body |= {"logprobs": 1} if self.logprobs else {}
        path = "chat/completions" if chat else "completions"
        answer, content = self._fetch("POST", path, self.timeout, body)
        if answer.status_code != 200:
            raise self._failure(answer, content)
        try:
            rollout = _read(_parsed(content), chat=chat)
        except _Refused as error:
            refused: Exception = _Refused(self._secrets.told(str(error)))
        except (*_WRONG, RecursionError) as error:
            told = f"the answer is not what was expected ({type(error).__name__}: {error})"
            refused = _Retry(self._secrets.told(told))
        else:
            return replace(rollout, completion=self._secrets.hidden(rollout.completion))
        raise refused

    def _fetch(
        self, method: str, path: str, seconds: float, body: Mapping[str, Any] | None = None
    ) -> tuple[httpx.Response, bytes]:
        """An answer and its content, all of which is there within so many seconds."""
        import httpx

        place = self._address._replace(netloc=self._address.netloc.rpartition("@")[2]).geturl()
        try:
            _in_time.until = time.monotonic() + seconds
            traced = {"trace": _in_time.trace}
            with self._client.stream(
                method, f"{place}/{path}", json=body, extensions=traced
            ) as answer:
                return answer, _limited(answer)
        except (TimeoutError, httpx.ReadTimeout, httpx.WriteTimeout):
            failed = f"no whole answer within {seconds:g} s"
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            failed = f"{type(error).__name__}: {error}".strip(": ")
        raise _Retry(self._secrets.told(failed))

    def _failure(self, answer: httpx.Response, content: bytes) -> Exception:
        self._require_here(answer)
        status, said = answer.status_code, content[: 100 * _LONGEST_REASON]
        told = self._secrets.told(f"HTTP {status}: {said.decode('utf-8', 'replace')}")
        if status in (401, 403):
            return ServerError(f"{told}. Set OPENAI_API_KEY to a key that the server accepts")
        if status == 404:
            listed = ", ".join(self.models())[:_LONGEST_REASON] or "none that it lists"
            return ServerError(f"{told}. It has these models: {listed}; asked for {self.model}")
        if status in _PASSING or status >= 500:
            try:
                wait = float(answer.headers.get("Retry-After", 0))
            except ValueError:  # a date
                wait = 0.0
            return _Retry(told, wait if wait > 0 else 0.0)  # NaN is none
        return _Refused(told)

    def _require_here(self, answer: httpx.Response) -> None:
        """Refuse an address that is not that of the server."""
        if 300 <= answer.status_code < 400:
            there = answer.headers.get("Location", "").partition("?")[0]
            told = self._secrets.told(f"HTTP {answer.status_code}: elsewhere, at {there}")
            raise ServerError(
                f"{told}. Set OPENAI_BASE_URL to the address that answers itself, with its /v1"
            )


class _InTime(threading.local):
    """When the request that a thread is making has to be over."""

    until = 0.0

    def left(self) -> float:
        seconds = self.until - time.monotonic()
        if seconds <= 0:
            raise TimeoutError
        return seconds

    def trace(self, event: str, found: Mapping[str, Any]) -> None:
        """Bound what a new connection reads and writes; httpcore calls this."""
        if not event.endswith(("connect_tcp.complete", "start_tls.complete")):
            return
        stream = found["return_value"]
        read, write = stream.read, stream.write

        def read_in_time(size: int, timeout: float | None = None) -> bytes:
            content: bytes = read(size, self.left())
            return content

        def write_in_time(content: bytes, timeout: float | None = None) -> None:
            for start in range(0, len(content), _PIECE):
                write(content[start : start + _PIECE], self.left())

        stream.read, stream.write = read_in_time, write_in_time


_in_time = _InTime()


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
        whole = [re.escape(form) for form in sorted(forms, key=len, reverse=True)]
        # half of it, from its start, and what goes on: a server may cut it
        begun = [
            re.escape(form[: max(12, len(form) // 2)]) + r"[\w.~+/=%-]*"
            for form in sorted(forms, key=len, reverse=True)
        ]
        self._found = re.compile("|".join([*whole, *begun]) or r"(?!)")

    def hidden(self, text: str) -> str:
        """The text without them."""
        return self._found.sub("[secret]", text)

    def told(self, text: str) -> str:
        """A reason: one printable line of bounded length, without them."""
        line = " ".join(self.hidden(text).split())
        return "".join(c if c.isprintable() else "?" for c in line[:_LONGEST_REASON])

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = self.hidden(record.getMessage()), ()
        return True


class _Health:
    """Whether a server is still to be asked; shared by the threads that ask it."""

    def __init__(self, limit: int) -> None:
        self._limit, self._in_a_row = limit, 0
        self._lock = threading.Lock()
        self._error: ServerError | None = None

    def answered(self) -> None:
        with self._lock:
            self._in_a_row = 0

    def failed(self, why: str) -> None:
        with self._lock:
            self._in_a_row += 1
            if self._in_a_row >= self._limit and self._error is None:
                self._error = ServerError(
                    f"{self._in_a_row} requests in a row were not answered, the last because of "
                    f"{why}. The parts that were answered are kept: run it again when the "
                    "server is back"
                )

    def end(self, error: ServerError) -> None:
        with self._lock:
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
    raise ValueError(
        "no address of a server: set OPENAI_BASE_URL, such as http://localhost:8000/v1 (without ?, "
        "# and white space)"
    )


def _user(address: SplitResult) -> tuple[str, str]:
    return unquote(address.username or ""), unquote(address.password or "")


def _require_sendable(key: str) -> None:
    """Refuse a key that no header can carry, without showing it."""
    wrong = re.search(r"[^!-~]", key)
    if wrong:
        place = wrong.start()
        where = "first" if place == 0 else "last" if place == len(key) - 1 else "middle"
        found = "white space" if wrong[0].isspace() else "not printable ASCII"
        raise ValueError(
            f"OPENAI_API_KEY cannot be sent: U+{ord(wrong[0]):04X} in it ({found}; {where} of its "
            "characters). Set it without what does not belong to the key"
        )


def _limited(answer: httpx.Response) -> bytes:
    """The content of an answer, unpacked, of bounded length."""
    parts, size = [], 0
    for part in answer.iter_raw():
        parts.append(part)
        size += len(part)
        _require_length(size)
    content = b"".join(parts)
    packing = answer.headers.get("Content-Encoding", "identity").strip().lower()
    if packing == "identity":
        return content
    if packing not in ("gzip", "x-gzip", "deflate"):
        raise _Retry("the answer is packed, though that was not asked for")
    unpacking = zlib.decompressobj(zlib.MAX_WBITS | 32)  # whichever of them it is
    try:
        content = unpacking.decompress(content, MAX_BODY + 1)
    except zlib.error as error:
        raise _Retry(f"the answer is not {packing} ({error})") from None
    _require_length(len(content))
    if not unpacking.eof:
        raise _Retry(f"the answer is {packing} that was cut")
    return content


def _require_length(size: int) -> None:
    if size > MAX_BODY:
        raise _Retry(f"the answer has more than {MAX_BODY:,} bytes")


def _parsed(content: bytes) -> Any:
    """The JSON of an answer.

    Raises:
        ValueError: If it is no object, is nested too deep, or names a field twice.
    """
    if content.count(b"[") + content.count(b"{") > MAX_BRACKETS:
        raise ValueError(f"more than {MAX_BRACKETS:,} brackets")
    return json_object(content.decode("utf-8-sig"))


def _failed(error: str) -> Rollout:
    return Rollout(
        completion="",
        token_ids=None,
        logprobs=None,
        finished=False,
        prompt_tokens=0,
        error=error,
    )


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
    return Rollout(
        completion=text,
        token_ids=None,
        logprobs=_logprobs(choice, chat=chat),
        finished=reason == "stop",
        prompt_tokens=tokens[0],
        n_tokens=tokens[1],
    )


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
