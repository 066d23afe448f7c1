"""``corea serve``: a card and the addresses of two servers, as one server.

Keys come from the environment and are written nowhere: ``COREA_API_KEY`` is asked of clients,
``COREA_SMALL_KEY`` and ``OPENAI_API_KEY`` are given to the small and the large model's server.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn

from corea.engines.base import Sampling
from corea.serving.app import LOOPBACK, Limits, Service
from corea.serving.cascade import Cascade
from corea.serving.log import AnswerLog, losses, read_log
from corea.thresholds.card import Card
from corea.thresholds.sequential import DriftAlarm

KEY = "COREA_API_KEY"
_SHORTEST_KEY = 16
_ATTEMPTS = 2


class ServeError(ValueError):
    """A service that cannot be started; says why in a line."""


def serve(
    card_path: str | Path,
    small_url: str,
    large_url: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    small_model: str = "",
    large_model: str = "",
    answers: str | Path = "answered.jsonl",
    keep_text: bool = False,
    name: str = "corea",
    audit: float = 0.0,
    limits: Limits | None = None,
    grace: int = 30,
    vllm: bool = True,
    **cascade: Any,
) -> None:
    """Serve a cascade until it is told to end (SIGTERM, an interrupt), then finish what is begun.

    The address is printed once it listens. Before that both servers are asked which models they
    have, and for one token: one that refuses would be a cascade that always defers, or never can.

    Args:
        card_path: The threshold card.
        small_url: Address of the small model's API, with its ``/v1``.
        large_url: Address of the large model's API.
        host: Address to listen at; beyond loopback ``COREA_API_KEY`` has to be set.
        port: To listen at; 0 takes a free one.
        small_model: Name under which its server has the small model; that of the card when empty.
        large_model: Likewise.
        answers: The answer log, a file of JSON lines (:mod:`corea.serving.log`).
        keep_text: Whether prompts, completions and answers are in the log too.
        name: Of the cascade, as clients name their model.
        audit: Share of questions that the large model is asked in any case.
        limits: On size, time and number of questions.
        grace: Seconds for questions in progress once it is to end.
        vllm: Whether both servers take vLLM's own parameters (choice 4 of the server engine).
        cascade: What else a :class:`Cascade` takes: ``when_large_fails``, ...; ``size_ratio`` and
            ``output_price`` are by default the card's.

    Raises:
        ServeError: If it cannot be started as told.
        CardError: If the card cannot be used.
    """
    from corea.engines.server import VLLM_BODY, AddressError, ServerEngine, ServerError

    limits, key, card = limits or Limits(), _key(host), Card.load(card_path)
    cascade = {str(name): price for name, price in card.prices.items()} | cascade
    sides = (("small", small_url, small_model), ("large", large_url, large_model))
    engines: dict[str, ServerEngine] = {}
    listening = log = None
    try:
        for side, url, model in sides:
            engines[side] = ServerEngine(
                model or getattr(card, side),
                url,
                concurrency=limits.at_once,
                timeout=cascade.get(f"{side}_seconds", getattr(Cascade, f"{side}_seconds")),
                attempts=_ATTEMPTS,
                body=VLLM_BODY if vllm else {},
                logprobs=side == "small",
                key_from={"small": "COREA_SMALL_KEY", "large": "OPENAI_API_KEY"}[side],
            )
        asked = Cascade(engines["small"], engines["large"], card, **cascade)
        for side, engine in engines.items():
            _require_model(side, engine, card)
        listening = _listening(host, port)
        log = _log_at(answers)
        service = Service(
            asked,
            log,
            name=name,
            limits=limits,
            key=key,
            hosts=LOOPBACK if host in LOOPBACK else (),
            keep_text=keep_text,
            audit=audit,
            on_loss=_alarm(card, log) if audit else None,
        )
        address = f"[{host}]" if ":" in host else host
        print(f"serving {name} at http://{address}:{listening.getsockname()[1]}/v1", flush=True)
        config = uvicorn.Config(
            service.app,
            loop="asyncio",
            http="h11",  # its limit on headers is 64 KiB
            lifespan="on",
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=max(1024, 4 * (limits.at_once + limits.waiting)),
            timeout_graceful_shutdown=grace,
        )
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn's, and raised again by it
                signal.signal(number, lambda *_: None)
        uvicorn.Server(config).run(sockets=[listening])
    except (ServerError, AddressError) as error:
        raise ServeError(f"the {side} model: {error}") from None
    finally:
        for engine in engines.values():
            engine.close()
        if log:
            log.close()
        if listening:
            listening.close()


def _key(host: str) -> str:
    """The key that clients have to give, which a server beyond loopback needs."""
    key = os.environ.get(KEY, "")
    if not key and host not in LOOPBACK:
        raise ServeError(f"host is {host}, which others can reach: set {KEY} to a key for them")
    if key and (len(key) < _SHORTEST_KEY or not key.isascii() or not key.isprintable()):
        raise ServeError(f"{KEY} is no key; expected {_SHORTEST_KEY} or more printable characters")
    return key


def _require_model(side: str, engine: Any, card: Card) -> None:
    """Refuse a server that has not the card's model, or does not answer, or not with its signal."""
    listed = engine.models()
    if listed and engine.model not in listed:
        raise ServeError(
            f"the {side} model: the card is about {getattr(card, side)!r}, and the server has "
            f"{', '.join(listed[:10])}, not {engine.model!r}. If one of them is that system, give "
            f"its name as {side}_model; otherwise fit a card for the systems that are there"
        )
    [[rollout]] = engine.generate(["1+1="], Sampling(0.0, 1))
    if rollout.error:
        refused = rollout.error.startswith("HTTP 4")
        hint = "; if it does not know vLLM's own parameters, serve with vllm=False"
        raise ServeError(f"the {side} model: {rollout.error}{hint if refused else ''}")
    if side == "small" and card.signal == "average_probability" and rollout.logprobs is None:
        raise ServeError(
            f"the small model: the card reads log-probabilities ({card.signal}), and its server "
            "gives none"
        )


def _listening(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        number = getattr(error, "errno", None)
        told = os.strerror(number) if number and number > 0 else error
        raise ServeError(f"cannot listen at {host}, port {port}: {told}") from None


def _log_at(path: str | Path) -> AnswerLog:
    try:
        return AnswerLog(path)
    except (OSError, ValueError) as error:
        raise ServeError(f"the answer log: {error}") from None


def _alarm(card: Card, log: AnswerLog) -> Callable[[float], bool] | None:
    """The alarm of a promise about disagreement, which needs no verdicts, up to now."""
    if card.guarantee.kind != "disagreement":
        logging.getLogger(__name__).warning(
            "the card promises %s: the alarm on it needs verdicts (corea.serving.log.losses)",
            card.guarantee.kind,
        )
        return None
    alarm = DriftAlarm(card.guarantee.level, card.guarantee.delta)
    if log.path.stat().st_size:
        for loss in losses(read_log(log.path)):
            alarm.update(loss)
    return alarm.update
