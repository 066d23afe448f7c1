r"""A server that speaks OpenAI's API, as an engine: ``vllm serve``, or a hosted model.

:class:`ServerEngine` is an :class:`corea.generate.Engine`. What is decided here:

1. Each completion is a request of its own, with a seed drawn from the sampling's seed, the prompt
   and the number of the sample. So a completion that failed can be asked for alone, and neither
   the order of the prompts nor how many are asked at once decides what is asked.
2. A request that fails for a reason that may pass (no connection, out of time, 408, 409, 425, 429,
   5xx, a body that is cut, no JSON or not what was expected) is made again, after a wait that
   doubles and is as long as a ``Retry-After`` says, but at most a minute. What still fails, and
   what the server refuses (any other status, such as 400 or 422), is a rollout with an ``error``
   and without a completion.
3. What no question can change ends the evaluation at once: a key that is not accepted (401, 403)
   or a model that is not there (404). So does a server that answered none of as many requests in
   a row as are made at once. Parts of the evaluation that were answered are kept.
4. ``top_p`` is sent as 1, and vLLM is told to leave its other filters off, which a model's own
   generation config may set (:data:`VLLM_BODY`).
5. Log-probabilities are taken where the server gives them. vLLM's are those of temperature 1
   (its ``logprobs-mode`` is ``raw_logprobs`` unless it is told otherwise).
6. The address and the key come from ``OPENAI_BASE_URL`` and ``OPENAI_API_KEY``, as for OpenAI's
   own client, and are written nowhere.
7. The server encodes prompts with the tokenizer it reads, and transformers' ``AutoTokenizer`` reads
   that of a Qwen2 model with a tokenizer of its own as Qwen2's. So for a model whose tokenizer is
   at hand, prompts can be sent to vLLM as the ids that our own tokenizer makes of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from corea.generate import Rollout, Sampling, request_seed, wanted_samples
from corea.models import chat_prompt, encode_prompts

if TYPE_CHECKING:
    import httpx
    from tenacity import RetryCallState
    from transformers import PreTrainedTokenizerBase

VLLM_BODY: Mapping[str, Any] = MappingProxyType(
    {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
)
"""What is sent to vLLM beyond OpenAI's parameters; a hosted model may refuse it: send nothing."""

MAX_BODY = 64 * 2**20
"""Bytes above which an answer is not read."""

_PASSING = {408, 409, 425, 429}
_LONGEST_WAIT = 60.0


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
        url: Address of the API, with its ``/v1``; ``OPENAI_BASE_URL`` when empty.
        concurrency: Requests at once, from 1.
        chat: Whether a prompt is a user's message, which the server puts into the chat template;
            otherwise it is the text to go on with.
        timeout: Seconds without an answer after which a request has failed.
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
    url: str = ""
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
            ValueError: If one is out of range, or there is no address.
        """
        if not self.model:
            raise ValueError("model is empty; expected the name that the server has it under")
        for name in ("concurrency", "attempts"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} is {value!r}; expected a whole number from 1")
        if not self.timeout > 0 or not self.first_wait >= 0:
            raise ValueError(f"timeout is {self.timeout!r} and first_wait {self.first_wait!r}")
        if not self._address.startswith(("http://", "https://")):
            raise ValueError(
                "no address of a server: set OPENAI_BASE_URL, such as http://localhost:8000/v1"
            )
        if self.tokenizer and self.chat and not self.tokenizer.chat_template:
            raise ValueError("chat is True, but the tokenizer has no chat template")

    @property
    def _address(self) -> str:
        return (self.url or os.environ.get("OPENAI_BASE_URL", "")).rstrip("/")

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

    @cached_property
    def _client(self) -> httpx.Client:
        import httpx

        key = os.environ.get("OPENAI_API_KEY", "")
        return httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
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
        self._health.require()
        wanted = wanted_samples(prompts, sampling, samples)
        said = self._encoded(prompts)
        futures: list[Future[Rollout]] = [
            self._threads.submit(
                self._ask, said[i], sampling, request_seed(prompts[i], number, sampling)
            )
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

    def models(self) -> list[str]:
        """Names of the models that the server has.

        Returns:
            The names; a server that does not list them has none.

        Raises:
            ServerError: If it cannot be reached.
        """
        import httpx

        try:
            answer = self._client.get(f"{self._address}/models", timeout=min(30.0, self.timeout))
            listed = answer.json()["data"]
            return [str(entry["id"]) for entry in listed]
        except httpx.HTTPError as error:
            raise ServerError(
                f"the server cannot be reached ({type(error).__name__}: {error}). Start it, or set "
                "OPENAI_BASE_URL to its address"
            ) from error
        except (ValueError, KeyError, TypeError):
            return []

    def _encoded(self, prompts: Sequence[str]) -> Sequence[str | list[int]]:
        """What is sent of each prompt."""
        if self.tokenizer is None:
            return prompts
        with self._encoding:  # a tokenizer is not to be used by two threads at once
            if self.chat:
                prompts = [chat_prompt(self.tokenizer, prompt) for prompt in prompts]
            return encode_prompts(self.tokenizer, prompts)

    @cached_property
    def _encoding(self) -> threading.Lock:
        return threading.Lock()

    def _ask(self, prompt: str | list[int], sampling: Sampling, seed: int) -> Rollout:
        """One completion, or a rollout with an error."""
        import tenacity

        self._health.require()
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_Retry),
            stop=tenacity.stop_after_attempt(self.attempts),
            wait=self._wait,
            reraise=True,
        )
        try:
            rollout = retrying(self._request, prompt, sampling, seed)
        except _Refused as error:
            return _failed(str(error))
        except _Retry as error:
            self._health.failed(str(error))
            self._health.require()
            return _failed(f"{error} ({self.attempts} attempts)")
        except ServerError as error:
            self._health.end(error)
            raise
        self._health.answered()
        return rollout

    def _wait(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = error.wait if isinstance(error, _Retry) else 0.0
        doubled = self.first_wait * 2.0 ** (state.attempt_number - 1)
        # requests that failed together do not come back together
        spread = float(np.random.default_rng().uniform(0.75, 1.25))
        return min(_LONGEST_WAIT, max(asked, doubled * spread))

    def _request(self, prompt: str | list[int], sampling: Sampling, seed: int) -> Rollout:
        import httpx

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
        try:
            with self._client.stream("POST", f"{self._address}/{path}", json=body) as answer:
                content = _limited(answer)
        except httpx.HTTPError as error:
            raise _Retry(f"{type(error).__name__}: {error}".strip(": ")) from error
        except OSError as error:  # a host that is not there, seldom
            raise _Retry(f"{type(error).__name__}: {error}") from error
        if answer.status_code != httpx.codes.OK:
            raise self._failure(answer, content)
        try:
            return _read(json.loads(content), chat=chat)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise _Retry(f"the answer is not what was expected ({error!r})"[:300]) from error

    def _failure(self, answer: httpx.Response, content: bytes) -> Exception:
        status, said = answer.status_code, content[:300].decode("utf-8", "replace")
        told = f"HTTP {status}: {' '.join(said.split())}"
        if status in (401, 403):
            return ServerError(f"{told}. Set OPENAI_API_KEY to a key that the server accepts")
        if status == 404:
            listed = ", ".join(self.models()) or "none that it lists"
            return ServerError(f"{told}. It has these models: {listed}; asked for {self.model}")
        if status in _PASSING or status >= 500:
            try:
                wait = float(answer.headers.get("Retry-After", 0))
            except ValueError:  # a date
                wait = 0.0
            return _Retry(told, wait)
        return _Refused(told)


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


def _limited(answer: httpx.Response) -> bytes:
    parts, size = [], 0
    for part in answer.iter_bytes():
        size += len(part)
        if size > MAX_BODY:
            raise _Retry(f"the answer has more than {MAX_BODY:,} bytes")
        parts.append(part)
    return b"".join(parts)


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
    if chat:
        text = choice["message"]["content"]
        listed = (choice.get("logprobs") or {}).get("content") or []
        logprobs = [entry["logprob"] for entry in listed]
    else:
        text = choice["text"]
        logprobs = (choice.get("logprobs") or {}).get("token_logprobs") or []
    if choice.get("finish_reason") not in ("stop", "length"):
        raise _Refused(f"it ended because of {choice.get('finish_reason')!r}"[:200])
    text = "" if text is None else text  # nothing was written before the end
    if not isinstance(text, str):
        raise TypeError(f"the completion is {type(text).__name__}")
    tokens = [content["usage"][name] for name in ("prompt_tokens", "completion_tokens")]
    if any(not isinstance(n, int) or isinstance(n, bool) or n < 0 for n in tokens):
        raise TypeError(f"usage is {tokens}")
    values = np.array(logprobs, dtype=np.float32)
    if not np.isfinite(values).all() or (values > 1e-3).any():
        raise ValueError("a log-probability is no number up to 0")
    return Rollout(
        completion=text,
        token_ids=None,
        logprobs=np.minimum(values, 0.0) if values.size else None,
        finished=choice["finish_reason"] == "stop",
        prompt_tokens=tokens[0],
        n_tokens=tokens[1],
    )
