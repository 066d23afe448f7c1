"""A server that answers, stutters, lies and dies; the engine that asks it."""

import asyncio
import base64
import gzip
import json
import logging
import re
import threading
import time
import traceback
import zlib
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corea import stages
from corea.engines.base import Sampling
from corea.engines.evaluation import evaluate, read_samples
from corea.engines.opening import opened
from corea.engines.server import (
    ServerEngine,
    ServerError,
    _parsed,
    _read,
    _Refused,
    _Secrets,
    _split,
)
from corea.tasks.questions import Question

SAMPLING = Sampling(0.6, 20, n_samples=2, seed=3)


def good(body, *, text=None):
    """An answer as vLLM's chat completions give it."""
    question = body["messages"][0]["content"].splitlines()[0]
    said = rf"It is \boxed{{{eval(question)}}} \confidence{{0.8}}" if text is None else text
    return {
        "choices": [
            {
                "message": {"role": "assistant", "content": said},
                "finish_reason": "stop",
                "logprobs": {"content": [{"token": "a", "logprob": -0.5}] * 3},
            }
        ],
        "usage": {"prompt_tokens": 11, "completion_tokens": 3},
    }


def completed(text, tokens, **choice):
    """An answer as vLLM's completions give it."""
    return {
        "choices": [{"text": text, "finish_reason": "stop", **choice}],
        "usage": {"prompt_tokens": tokens, "completion_tokens": 2},
    }


class Server:
    """Answers by a script: a function of the body and of how often the same was asked."""

    def __init__(self, script=lambda body, times: (200, good(body)), models=("tiny",)):
        self.script, self.models = script, models
        self.listed = None  # what is said of the models instead
        self.bodies, self.headers, self.times, self.engines = [], [], Counter(), []
        self.at_once = self.most = 0
        self.lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
                if callable(server.listed):
                    self.close_connection = True
                    server.listed(self.wfile)
                    return
                if server.listed:
                    status, content, *rest = server.listed
                    whole = isinstance(content, bytes)
                    self.send(status, content if whole else json.dumps(content).encode(), *rest)
                    return
                listed = {"data": [{"id": name} for name in server.models]}
                self.send(200, json.dumps(listed).encode())

            def do_POST(self):
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                body = json.loads(raw)
                with server.lock:
                    server.bodies.append((self.path, body))
                    server.headers.append(dict(self.headers))
                    server.times[raw] += 1
                    times = server.times[raw]
                    server.at_once += 1
                    server.most = max(server.most, server.at_once)
                try:
                    answer = server.script(body, times)
                finally:
                    with server.lock:
                        server.at_once -= 1
                if answer is None:  # the connection breaks off
                    self.close_connection = True
                    return
                if callable(answer):  # writes what it likes
                    self.close_connection = True
                    answer(self.wfile)
                    return
                status, content, *rest = answer
                if not isinstance(content, bytes):
                    content = json.dumps(content).encode()
                self.send(status, content, *rest)

            def send(self, status, content, headers=None, length=None):
                self.send_response(status)
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(length or len(content)))
                self.end_headers()
                self.wfile.write(content)
                if length:  # a body that is cut
                    self.close_connection = True

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

            def handle_error(self, *_):
                pass

        self.http = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def engine(self, **changed):
        settings = {"url": self.url, "timeout": 20.0, "attempts": 3}
        self.engines.append(ServerEngine("tiny", **settings | changed))
        return self.engines[-1]


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """What failed is asked for again at once."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)


@pytest.fixture
def serve():
    servers = []

    def start(*arguments, **named):
        servers.append(Server(*arguments, **named))
        return servers[-1]

    yield start
    for server in servers:
        for engine in server.engines:
            engine.close()
        server.http.shutdown()
        server.http.server_close()


def test_a_chat_is_asked_and_read(serve, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "s3cret")
    server = serve()
    [[first, second]] = server.engine().generate(["1+1\nPlease"], SAMPLING)
    assert first.completion == second.completion == r"It is \boxed{2} \confidence{0.8}"
    np.testing.assert_array_equal(first.logprobs, np.float32([-0.5] * 3))
    assert (first.prompt_tokens, first.completion_tokens, first.finished) == (11, 3, True)
    assert first.token_ids is None
    assert first.error == ""
    (path, body), (_, other) = server.bodies
    assert path == "/v1/chat/completions"
    seeds = {body.pop("seed"), other.pop("seed")}
    assert len(seeds) == 2  # each sample has its own
    assert body == other == {
        "model": "tiny",
        "temperature": 0.6,
        "top_p": 1.0,
        "max_tokens": 20,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "messages": [{"role": "user", "content": "1+1\nPlease"}],
        "logprobs": True,
    }  # fmt: skip
    assert server.headers[0]["Authorization"] == "Bearer s3cret"


def test_a_text_is_gone_on_with(serve):
    def script(body, _):
        assert body["prompt"] == "1+1"
        logprobs = {"token_logprobs": [-0.25, 0.0]}
        return 200, completed(" = 2", 3, finish_reason="length", logprobs=logprobs)

    server = serve(script)
    engine = server.engine(chat=False, body={})
    [[rollout]] = engine.generate(["1+1"], Sampling(0.0, 2))
    assert (rollout.completion, rollout.finished) == (" = 2", False)
    np.testing.assert_array_equal(rollout.logprobs, np.float32([-0.25, 0.0]))
    [(path, body)] = server.bodies
    assert path == "/v1/completions"
    assert set(body) == {
        "model", "temperature", "top_p", "max_tokens", "seed", "prompt", "logprobs",
    }  # fmt: skip


class Letters:
    """A tokenizer whose ids are the letters' own."""

    chat_template = "<{{ messages[0].role }}>{{ messages[0].content }}<says>"
    special_tokens_map = MappingProxyType({})
    name_or_path = "letters"
    bos_token = None

    def __len__(self):
        return 128

    def __call__(self, texts, add_special_tokens):
        return {"input_ids": [[*([0] * add_special_tokens), *text.encode()] for text in texts]}

    def get_chat_template(self):
        return self.chat_template


@pytest.mark.parametrize("chat", [False, True])
def test_prompts_can_be_sent_as_ids(serve, chat):
    def script(body, _):
        said = body["prompt"]
        text = said if isinstance(said, str) else bytes(said[1:]).decode()
        return 200, completed(text, len(said), logprobs=None)

    server = serve(script)
    engine = server.engine(chat=chat, tokenizer=Letters())
    rollouts = engine.generate(["1+1", "2+2", "1+1"], SAMPLING)
    texts = ["<user>1+1<says>", "<user>2+2<says>"] if chat else ["1+1", "2+2"]
    assert [[rollout.completion for rollout in group] for group in rollouts] == [
        [text] * 2 for text in [*texts, texts[0]]
    ]
    assert {path for path, _ in server.bodies} == {"/v1/completions"}
    assert all(body["prompt"][0] == 0 for _, body in server.bodies)  # a special token
    without = server.engine(chat=False)
    without.generate(["1+1", "2+2", "1+1"], SAMPLING)
    seeds = [body["seed"] for _, body in server.bodies]
    assert sorted(seeds[:6]) == sorted(seeds[6:])  # drawn from the text, whatever is sent
    assert len({engine.fingerprint, without.fingerprint}) == 2


@pytest.mark.parametrize("template", ["", "<u>{{ messages[0]['content'] }}<a>"])
def test_a_server_of_a_folder_here_is_sent_the_ids_of_its_own_tokenizer(
    serve, tmp_path, monkeypatch, template
):
    from tiny_models import make_model, make_tokenizer

    folder, tokenizer = tmp_path / "tiny", make_tokenizer(merging=True)
    tokenizer.chat_template = template or None
    make_model(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)

    server = serve(
        lambda body, _: (200, completed(tokenizer.decode(body["prompt"]), len(body["prompt"])))
    )
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    with opened("server", folder) as engine:
        [[rollout]] = engine.generate(["3+4:"], Sampling(0.0, 8))
    assert rollout.completion == ("<u>3+4:<a>" if template else "3+4:")
    assert {(path, body["model"]) for path, body in server.bodies} == {
        ("/v1/completions", str(folder))
    }
    assert stages.identity(folder, "server") == stages.identity(folder)


def test_what_is_asked_does_not_depend_on_order_or_company(serve):
    server = serve()
    engine = server.engine()
    prompts = ["1+1", "2+2", "1+1"]
    engine.generate(prompts, SAMPLING)
    asked = {json.dumps(body, sort_keys=True) for _, body in server.bodies}
    assert len(asked) == 6  # the third prompt is asked for further samples
    server.bodies.clear()
    for samples in ([[1], [], [0]], [[0], [0, 1], [1]]):
        engine.generate(prompts, SAMPLING, samples=samples)
    assert {json.dumps(body, sort_keys=True) for _, body in server.bodies} == asked
    assert len(server.bodies) == 6


FAILURES = {
    "500": lambda body: (500, b"<html>oops</html>"),
    "429": lambda body: (429, {"error": "slow down"}, {"Retry-After": "0"}),
    "429 with a date": lambda body: (
        429, b"", {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"},
    ),
    "408": lambda body: (408, b""),
    "connection breaks off": lambda body: None,
    "body is cut": lambda body: (200, json.dumps(good(body)).encode()[:40], {}, 4000),
    "no JSON": lambda body: (200, b"\xff\xfeI am a teapot"),
    "not what was expected": lambda body: (200, [good(body)]),
}  # fmt: skip


@pytest.mark.parametrize("failure", FAILURES)
def test_what_may_pass_is_asked_again(serve, failure):
    server = serve(lambda body, times: (200, good(body)) if times == 3 else FAILURES[failure](body))
    [[rollout]] = server.engine().generate(["1+1"], Sampling(0.0, 20))
    assert rollout.completion == r"It is \boxed{2} \confidence{0.8}"
    assert len(server.bodies) == 3


@pytest.mark.parametrize("failure", FAILURES)
def test_what_does_not_pass_is_a_failed_row_and_the_others_are_there(serve, failure):
    def script(body, _):
        wrong = body["messages"][0]["content"].startswith("2+2")
        return FAILURES[failure](body) if wrong else (200, good(body))

    server = serve(script)
    [[first], [second], [third]] = server.engine().generate(
        ["1+1", "2+2", "3+3"], Sampling(0.0, 20)
    )
    assert not first.error
    assert not third.error
    assert second.completion == ""
    assert second.error.endswith("(3 attempts)")
    assert len(server.bodies) == 5


@pytest.mark.parametrize("status", [400, 413, 422])
def test_what_the_server_refuses_is_not_asked_again(serve, status):
    server = serve(lambda body, _: (status, {"error": "the prompt is too long"}))
    [[rollout]] = server.engine().generate(["1+1"], Sampling(0.0, 20))
    assert rollout.error == f'HTTP {status}: {{"error": "the prompt is too long"}}'
    assert len(server.bodies) == 1


def test_an_answer_without_log_probabilities_or_text_is_one(serve):
    def script(body, _):
        answer = good(body)
        answer["choices"][0]["logprobs"] = None
        answer["choices"][0]["message"]["content"] = None
        return 200, answer

    [[rollout]] = serve(script).engine(logprobs=False).generate(["1+1"], Sampling(0.0, 20))
    assert (rollout.completion, rollout.logprobs, rollout.error) == ("", None, "")


def test_retry_after_is_heeded(serve):
    def script(body, times):
        return (429, b"", {"Retry-After": "1.5"}) if times == 1 else (200, good(body))

    begun = time.monotonic()
    [[rollout]] = serve(script).engine().generate(["1+1"], Sampling(0.0, 20))
    assert not rollout.error
    assert 1.5 <= time.monotonic() - begun < 10


def test_a_server_that_answers_nothing_is_given_up(serve):
    server = serve(lambda body, _: (503, b"loading"))
    engine = server.engine(concurrency=4)
    with pytest.raises(ServerError, match=r"4 requests in a row .* 503: loading.*run it again"):
        engine.generate([f"{i}+1" for i in range(100)], Sampling(0.0, 20))
    assert len(server.bodies) <= 8 * 3


def test_no_server_at_all_is_named():
    engine = ServerEngine("tiny", "http://127.0.0.1:9/v1", attempts=1, concurrency=1)
    with pytest.raises(ServerError, match="1 requests in a row were not answered.*ConnectError"):
        engine.generate(["1+1"], Sampling(0.0, 20))
    with pytest.raises(ServerError, match=r"cannot be reached \(ConnectError.*OPENAI_BASE_URL"):
        engine.models()
    engine.close()


def test_as_many_requests_at_once_as_allowed(serve):
    def script(body, _):
        time.sleep(0.1)
        return 200, good(body)

    server = serve(script)
    server.engine(concurrency=8).generate([f"{i}+1" for i in range(40)], Sampling(0.0, 20))
    assert server.most == 8


def test_what_a_server_cannot_give_is_refused():
    engine = ServerEngine("tiny", "http://127.0.0.1:9/v1")
    for named in ({"pooled_states": True}, {"confidence_grid": ("0.5",)}):
        with pytest.raises(ValueError, match=f"{next(iter(named))} is not to be had from a server"):
            engine.generate(["1+1"], SAMPLING, **named)
    with pytest.raises(ValueError, match="greedy_after is not to be had"):
        engine.generate(["1+1"], Sampling(0.6, 20, greedy_after="x"))


def test_wrong_settings_are_named(monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    url = "http://localhost/v1"
    for settings, complaint in (
        ({"model": ""}, "model is empty"),
        ({"url": ""}, "no address of a server: set OPENAI_BASE_URL"),
        ({"url": "localhost:8000"}, "no address of a server"),
        ({"concurrency": 0}, "concurrency is 0"),
        ({"attempts": True}, "attempts is True"),
        ({"timeout": 0}, "timeout is 0"),
        ({"timeout": float("nan")}, "timeout is nan"),
        ({"timeout": float("inf")}, "timeout is inf"),
        *(
            ({"url": f"http://{wrong}"}, "no address of a server")
            for wrong in (
                "",
                "h:x/v1",
                "h:99999",
                "h/v1?a=1",
                "h/v1#a",
                "h/v 1",
                "h/\r\nX: y",
                ":80",
            )
        ),
    ):
        with pytest.raises(ValueError, match=complaint):
            ServerEngine(**{"model": "tiny", "url": url} | settings)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://elsewhere/v1/")
    assert ServerEngine("tiny")._address.geturl() == "http://elsewhere/v1"
    first = ServerEngine("tiny").fingerprint
    assert first == ServerEngine("tiny", url).fingerprint  # the same model, wherever it is
    assert first != ServerEngine("other").fingerprint
    assert first != ServerEngine("tiny", chat=False).fingerprint
    monkeypatch.setattr(Letters, "chat_template", None)
    with pytest.raises(ValueError, match="the tokenizer has no chat template"):
        ServerEngine("tiny", tokenizer=Letters())


# --- what a server may do -----------------------------------------------------------------------

KEY = "sk-SECRET-0123456789abcdef"
LARGEST = 2**19  # bytes of an answer, in these tests
SECONDS = 4.0  # of a request


def changed(*path, to):
    """An answer in which one value is another."""

    def answer(body):
        whole = good(body)
        inner = whole
        for name in path[:-1]:
            inner = inner[name]
        inner[path[-1]] = to
        return 200, whole

    return answer


def text(old, new):
    """An answer in whose text something is replaced."""

    def answer(body):
        content = json.dumps(good(body))
        assert old in content
        return 200, content.replace(old, new).encode()

    return answer


def sent(status, body, headers=None):
    return lambda _: (status, body, headers or {})


def packed(how, *, cut=None):
    return lambda body: (
        200,
        gzip.compress(json.dumps(good(body)).encode())[:cut],
        {"Content-Encoding": how},
    )


def raw(*pieces, wait=0.0, endless=False):
    """Pieces written as they are; the last again and again if endless, until nobody reads."""

    def write(stream):
        begun = time.monotonic()
        for piece in pieces:
            stream.write(piece)
        while endless and time.monotonic() - begun < 3 * SECONDS:
            time.sleep(wait)
            stream.write(pieces[-1])

    return lambda _: write


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
FIRST_LOGPROB = ("choices", 0, "logprobs", "content", 0, "logprob")
IS_ONE, WITHOUT = "an answer", "an answer without log-probabilities"
UNEXPECTED = r"the answer is not what was expected \(\w+: .*\)"
ECHO = {"error": f"Illegal header value b'Bearer {KEY}'"}

ANSWERS = {
    "good": (lambda body: (200, good(body)), IS_ONE),
    "packed": (packed("gzip"), IS_ONE),
    "key in a header": (lambda body: (200, good(body), {"X-Echo": KEY}), IS_ONE),
    "cookies": (lambda body: (200, good(body), {"Set-Cookie": f"a={KEY}"}), IS_ONE),
    "says the key": (lambda body: (200, good(body, text=f"It is {KEY}")), IS_ONE),
    "most tokens": (changed("usage", "completion_tokens", to=10**9), IS_ONE),
    # log-probabilities
    "none": (changed("choices", 0, "logprobs", to=None), WITHOUT),
    "null": (changed(*FIRST_LOGPROB, to=None), WITHOUT),
    "-Infinity": (text("-0.5", "-Infinity"), WITHOUT),
    "-1e999": (text("-0.5", "-1e999"), WITHOUT),
    "NaN": (text("-0.5", "NaN"), WITHOUT),
    "huge": (text("-0.5", "-" + "9" * 400), WITHOUT),
    "above 0": (changed(*FIRST_LOGPROB, to=0.5), WITHOUT),
    "of text": (changed(*FIRST_LOGPROB, to="x"), WITHOUT),
    "bool": (changed(*FIRST_LOGPROB, to=False), WITHOUT),
    "a list": (changed("choices", 0, "logprobs", to=[1]), WITHOUT),
    "a number": (changed("choices", 0, "logprobs", "content", to=7), WITHOUT),
    # counts
    **{
        f"tokens {value[:20]}": (text('"prompt_tokens": 11', f'"prompt_tokens": {value}'), UNEXPECTED)
        for value in (
            *("9223372036854775808", "1000000001", "1" + "0" * 30, "1" * 5000, "-1", "1.5", "1e999"),
            *("NaN", "true", "null", '"11"', "[]", "[" * 900 + "]" * 900),
        )
    },
    "no usage": (text("usage", "use"), UNEXPECTED),
    # shapes
    "no choice": (changed("choices", to=[]), UNEXPECTED),
    "two choices": (changed("choices", to=[1, 2]), UNEXPECTED),
    "choices by name": (changed("choices", to={"a": 1}), UNEXPECTED),
    "no message": (changed("choices", 0, "message", to=None), UNEXPECTED),
    "completion of numbers": (changed("choices", 0, "message", "content", to=[1]), UNEXPECTED),
    "whole list": (lambda body: (200, [good(body)]), UNEXPECTED),
    "whole null": (sent(200, b"null"), UNEXPECTED),
    "choices twice": (text('{"choices"', '{"choices": [], "choices"'), UNEXPECTED),
    "tokens twice": (text('"prompt_tokens": 11', '"prompt_tokens": 1, "prompt_tokens": 11'), UNEXPECTED),
    # text
    "surrogate": (text("It is", r"It is \ud800"), "the answer.*half of a surrogate pair"),
    "raw surrogate": (
        lambda body: (200, json.dumps(good(body)).encode().replace(b"It", b"\xed\xa0\x80")),
        "the answer.*UnicodeDecodeError",
    ),
    "200,000 brackets": (sent(200, b"[" * 200_000), r"the answer.*\(ValueError: more than .* brackets\)"),
    "10,000 brackets": (sent(200, b"[" * 10_000), r"the answer.*\(ValueError: nested deeper than 32, the limit\)"),
    "10,000 braces": (sent(200, b'{"a":' * 10_000), r"the answer.*\(ValueError: nested deeper than 32, the limit\)"),
    "no JSON": (sent(200, b"<html>"), UNEXPECTED),
    "no UTF-8": (sent(200, b'{"\xff": 1}'), UNEXPECTED),
    "empty": (sent(200, b""), UNEXPECTED),
    "filtered": (changed("choices", 0, "finish_reason", to="content_filter"), "it ended .*content_filter"),
    "ended by the key": (changed("choices", 0, "finish_reason", to=KEY), r"it ended because of '\[secret\]'"),
    "not ended": (changed("choices", 0, "finish_reason", to=None), "it ended because of None"),
    # bytes
    "too long": (sent(200, b" " * (LARGEST + 1)), "the answer has more than 524,288 bytes"),
    "a bomb": (
        sent(200, gzip.compress(b" " * 2**26), {"Content-Encoding": "gzip"}),
        "the answer has more than 524,288 bytes",
    ),
    "deflate bomb": (
        sent(200, zlib.compress(b" " * 2**26), {"Content-Encoding": "deflate"}),
        "the answer has more than 524,288 bytes",
    ),
    "cut gzip": (packed("gzip", cut=-20), "the answer is gzip that was cut"),
    "no gzip": (sent(200, b"{}", {"Content-Encoding": "gzip"}), "the answer is not gzip"),
    "brotli": (sent(200, b"{}", {"Content-Encoding": "br"}), "the answer is packed"),
    "shorter than said": (lambda body: (200, b"{}", {}, 4000), "RemoteProtocolError"),
    # statuses
    "204": (sent(204, b""), "HTTP 204"),
    "400": (sent(400, ECHO), r"HTTP 400: .*Bearer \[secret\]"),
    "422, base64": (sent(422, base64.b64encode(KEY.encode())), r"HTTP 422: \[secret\]"),
    "422, cut": (sent(422, f"Bearer {KEY[:20]}".encode()), r"HTTP 422: Bearer \[secret\]"),
    "400, late": (sent(400, b" " * 10_000 + json.dumps(ECHO).encode()), r"HTTP 400: .*\[secret\]"),
    "400, long": (sent(400, b"x" * 100_000), "HTTP 400: x{200,}"),
    "400, signs": (sent(400, b"\x1b[31mred\x00\xff\r\n\x07"), r"HTTP 400: \?\[31mred\?"),
    "500": (sent(500, ECHO), r"HTTP 500: .*\[secret\]"),
    "503 for long": (sent(503, b"", {"Retry-After": "1e30"}), "HTTP 503"),
    "799": (sent(799, b"?"), "HTTP 799"),
    "a reason": (raw(b"HTTP/1.1 400 " + KEY.encode() + b"\r\nContent-Length: 2\r\n\r\nno"), "HTTP 400: no"),
    # connections and time
    "breaks off": (lambda _: None, "RemoteProtocolError"),
    "no HTTP": (raw(b"SSH-2.0-" + KEY.encode() + b"\r\n\r\n"), "RemoteProtocolError"),
    "key as a header": (raw(HEAD + KEY.encode() + b"\r\n\r\n"), "RemoteProtocolError"),
    "long header": (raw(HEAD + b"X: " + b"x" * 200_000 + b"\r\n\r\n"), "RemoteProtocolError|ReadError"),
    "silent": (raw(b"", wait=0.1, endless=True), f"no whole answer within {SECONDS:g} s"),
    "drips its body": (
        raw(HEAD + b"Content-Length: 9999\r\n\r\n", b" ", wait=0.1, endless=True),
        f"no whole answer within {SECONDS:g} s",
    ),
    "drips its head": (raw(HEAD + b"X: ", b"x", wait=0.1, endless=True), f"no whole answer within {SECONDS:g} s"),
    "goes on": (
        raw(b"HTTP/1.1 102 Processing\r\n\r\n", wait=0.01, endless=True),
        f"no whole answer within {SECONDS:g} s",
    ),
}  # fmt: skip


def everything_said(error):
    """What a traceback of an error could show, and all that it hangs on to."""
    said = "".join(traceback.format_exception(error))
    while error is not None:
        said += repr(error)
        error = error.__cause__ or error.__context__
    return said


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    return KEY


def test_each_answer_is_one_row_and_the_key_is_nowhere(serve, key, tmp_path, monkeypatch, caplog):
    """All of ANSWERS in one evaluation: each decides its own row, and within its time."""
    monkeypatch.setattr("corea.engines.server.MAX_BODY", LARGEST)
    monkeypatch.setattr("corea.engines.server.MAX_BRACKETS", 2**15)
    names = list(ANSWERS)
    assert len(names) >= 48

    def script(body, _):
        number = int(body["messages"][0]["content"].partition("+")[0])
        return ANSWERS[names[number]][0](body)

    server = serve(script)
    questions = [
        Question("sums", name, f"{i}+1", str(i + 1), "choice") for i, name in enumerate(names)
    ]
    engine = server.engine(attempts=1, concurrency=2 * len(names), timeout=SECONDS)
    caplog.set_level(logging.DEBUG)
    begun = time.monotonic()
    records = evaluate(
        engine, questions, system="tiny", sampling=Sampling(0.6, 20), directory=tmp_path
    )
    assert time.monotonic() - begun < 40
    rows = read_samples(tmp_path, failed=True).set_index("question_id")
    assert rows.index.tolist() == names
    for name, row in rows.iterrows():
        expected = ANSWERS[name][1]
        if expected in (IS_ONE, WITHOUT):
            assert row["error"] == "", name
            assert np.isnan(row["average_probability"]) == (expected == WITHOUT), name
            assert row["correct"] == (name != "says the key"), name
        else:
            assert re.match(expected, row["error"]), (name, row["error"])
            assert len(row["error"]) < 320, name
            assert row["error"].isprintable(), name
            assert row["completion"] == "", name
    assert rows.loc["says the key", "completion"] == "It is [secret]"
    assert len(records.table) == sum(said in (IS_ONE, WITHOUT) for _, said in ANSWERS.values())
    assert "HTTP Request" in caplog.text
    shown = [repr(engine), engine.fingerprint, str(records), caplog.text, rows.to_csv()]
    shown += [path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file()]
    assert not [text for text in shown if key in text or key[:13] in text]
    # what is sealed can be read, and only what failed is asked for again
    server.bodies.clear()
    server.script = lambda body, _: (200, good(body))
    assert len(evaluate(
        engine, questions, system="tiny", sampling=Sampling(0.6, 20), directory=tmp_path
    ).table) == len(names)  # fmt: skip
    assert len(server.bodies) == (rows["error"] != "").sum()
    assert not any("Cookie" in headers for headers in server.headers)


@pytest.mark.parametrize(
    ("status", "headers", "complaint"),
    [
        *(
            (status, {"Location": f"https://elsewhere/{KEY}/v1?token=t0ken"},
             rf"HTTP {status}: elsewhere, at https://elsewhere/\[secret\]/v1\. Set OPENAI_BASE_URL")
            for status in (301, 302, 303, 307, 308)
        ),
        (302, {}, r"HTTP 302: elsewhere, at\. Set OPENAI_BASE_URL"),
        (401, {}, r"HTTP 401: .*\[secret\].*Set OPENAI_API_KEY to a key"),
        (403, {}, "Set OPENAI_API_KEY"),
        (404, {}, r"It has these models: \[secret\], another; asked for tiny"),
    ],
)  # fmt: skip
def test_what_ends_it_does_not_say_the_key(serve, key, status, headers, complaint):
    server = serve(lambda body, _: (status, ECHO, headers), models=(KEY, "another", 3))
    engine = server.engine(concurrency=2)
    with pytest.raises(ServerError, match=complaint) as caught:
        engine.generate(["1+1"] * 50, Sampling(0.6, 20))
    assert len(server.bodies) <= 4
    assert key not in everything_said(caught.value)
    assert "t0ken" not in str(caught.value)
    with pytest.raises(ServerError, match=complaint):
        engine.generate(["1+1"], Sampling(0.6, 20))


def test_what_is_given_up_does_not_say_the_key(serve, key):
    engine = serve(lambda *_: (500, ECHO)).engine(attempts=1, concurrency=1)
    with pytest.raises(ServerError, match=r"1 requests in a row .*\[secret\]") as caught:
        engine.generate(["1+1"], Sampling(0.6, 20))
    assert key not in everything_said(caught.value)


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        ((200, {"data": [{"id": "a"}, {"id": KEY}, {"id": 7}]}), ["a", "[secret]"]),
        ((200, b"[" * 10_000), []),
        ((200, b'{"data": 7}'), []),
        ((500, b"no"), []),
        ((302, b"", {"Location": "/login"}), r"HTTP 302: elsewhere, at /login\. Set OPENAI_BASE"),
        ((200, b" " * 2000), r"cannot be reached \(the answer has more than 1,000 bytes\)"),
        (raw(HEAD + KEY.encode())(None), "cannot be reached"),
        (
            raw(HEAD + b"\r\n", b" ", wait=0.05, endless=True)(None),
            r"cannot be reached \(no whole answer within 0.3 s\)",
        ),
    ],
)
def test_a_list_of_models_is_read_within_limits(serve, key, monkeypatch, answer, outcome):
    monkeypatch.setattr("corea.engines.server.MAX_BODY", 10**5 if outcome == [] else 1000)
    server = serve()
    server.listed = answer
    engine = server.engine(timeout=0.3)
    if isinstance(outcome, list):
        assert engine.models() == outcome
    else:
        with pytest.raises(ServerError, match=outcome) as caught:
            engine.models()
        assert key not in everything_said(caught.value)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("sk-SECRET\r", r"U\+000D in it \(white space"),
        ("sk-SECRET\n", r"U\+000A in it"),
        ("\tsk-SECRET", r"U\+0009 in it \(white space"),
        ("sk SECRET", r"U\+0020 in it \(white space"),
        ("sk-SECRET\u200b", r"U\+200B in it \(not printable ASCII"),
        ("“sk-SECRET”", r"U\+201C in it \(not printable"),
        ("sk-SECRET\x7f", r"U\+007F"),
        ("sk-SECRET\udc80", r"U\+DC80"),
    ],
)
def test_a_key_that_cannot_be_sent_is_refused_without_being_shown(monkeypatch, value, found):
    monkeypatch.setenv("OPENAI_API_KEY", value)
    with pytest.raises(ValueError, match=f"OPENAI_API_KEY cannot be sent: {found}") as caught:
        ServerEngine("tiny", "http://localhost/v1")
    assert "SECRET" not in everything_said(caught.value)


def test_the_user_of_an_address_is_sent_and_not_shown(serve, monkeypatch, caplog):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    caplog.set_level(logging.DEBUG)
    pair = base64.b64encode(b"ann:pass/word").decode()
    server = serve(lambda *_: (400, f"pass/word pass%2Fword Basic {pair}".encode()))
    url = server.url.replace("http://", "http://ann:pass%2Fword@")
    engine = server.engine(url=url)
    [[rollout]] = engine.generate(["1+1"], Sampling(0.0, 20))
    assert server.headers[0]["Authorization"] == f"Basic {pair}"
    assert rollout.error == "HTTP 400: [secret] [secret] Basic [secret]"
    assert "pass" not in caplog.text + repr(engine)
    closed = ServerEngine("tiny", "http://ann:pass%2Fword@127.0.0.1:9/v1", attempts=1)
    with pytest.raises(ServerError, match="cannot be reached") as caught:
        closed.models()
    closed.close()
    assert "pass" not in everything_said(caught.value)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with pytest.raises(ValueError, match="the address has a user, and OPENAI_API_KEY is set"):
        ServerEngine("tiny", url)


def test_the_log_is_left_as_it_was(serve, key):
    filters = [logging.getLogger(name).filters[:] for name in ("httpx2", "httpcore2.http11")]
    engine = serve().engine()
    engine.generate(["1+1"], Sampling(0.0, 20))
    engine.close()
    assert [logging.getLogger(n).filters for n in ("httpx2", "httpcore2.http11")] == filters


ASCII = st.characters(min_codepoint=33, max_codepoint=126)


@given(st.text(ASCII, min_size=6, max_size=60), st.text(max_size=20), st.text(max_size=20))
def test_a_key_is_taken_out_of_any_text(key, before, after):
    secrets = _Secrets(key, _split("http://localhost/v1"))
    for form in (key, json.dumps(key)[1:-1], base64.b64encode(key.encode()).decode()):
        hidden = secrets.hidden(f"{before} {form} {after}")
        assert hidden == f"{before} [secret] {after}" or key in before + after or key not in hidden
        told = secrets.told(f"{before} {form} {after}")
        assert told.isprintable()
        assert len(told) <= 300
    assert _Secrets("", _split("http://localhost/v1")).hidden(before) == before


@pytest.mark.parametrize("short", ["EMPTY", "none", "x"])
def test_a_word_that_is_no_secret_stays_in_answers(serve, monkeypatch, short):
    monkeypatch.setenv("OPENAI_API_KEY", short)
    server = serve(lambda body, _: (200, good(body, text=f"It is {short}")))
    [[rollout]] = server.engine().generate(["1+1"], Sampling(0.0, 20))
    assert rollout.completion == f"It is {short}"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
PLACES = [
    *(("choices",), ("choices", 0), ("choices", 0, "message"), ("usage",)),
    *(("choices", 0, "message", "content"), ("choices", 0, "finish_reason")),
    *(("choices", 0, "logprobs"), ("choices", 0, "logprobs", "content"), FIRST_LOGPROB),
    *(("usage", "prompt_tokens"), ("usage", "completion_tokens")),
]


@given(st.sampled_from(PLACES), JSON)
def test_any_value_in_an_answer_is_read_or_refused(place, value):
    _, answer = changed(*place, to=value)({"messages": [{"content": "1+1"}]})
    try:
        rollout = _read(_parsed(json.dumps(answer).encode()), chat=True)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, _Refused):
        return
    rollout.completion.encode()
    assert 0 <= rollout.prompt_tokens <= 10**9
    assert 0 <= rollout.completion_tokens <= 10**9
    assert rollout.logprobs is None or np.isfinite(rollout.logprobs).all()


# --- one question at a time ---------------------------------------------------------------------

TALK = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1"})
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
USAGE = {"choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": 3}}


def part(text, reason=None):
    return {"choices": [{"delta": {"content": text}, "finish_reason": reason}]}


def events(*told):
    texts = [one if isinstance(one, str) else json.dumps(one) for one in told]
    return "".join(f"data: {text}\n\n" for text in texts).encode()


def of_one_question(engine, prompt="1+1", *, streamed=False, times=1):
    """What came of asking: rollouts, or the parts of streamed ones and each rollout."""

    async def ask():
        found = []
        for _ in range(times):
            if streamed:
                found += [part async for part in engine.stream(prompt, SAMPLING, 5)]
            else:
                found.append(await engine.ask(prompt, SAMPLING, 5))
        await engine.close_here()
        return found

    return asyncio.run(ask())


def test_a_server_that_failed_is_asked_again(serve):
    def script(body, _):
        return (500, b"no") if len(server.bodies) <= 6 else (200, good(body, text="2"))

    server = serve(script)
    engine = server.engine(concurrency=1, attempts=1)
    found = of_one_question(engine, times=8)
    assert [rollout.error for rollout in found] == ["HTTP 500: no"] * 6 + ["", ""]
    assert of_one_question(engine, TALK)[0].completion == "2"  # on another event loop
    _, body = server.bodies[-1]
    assert (body["messages"], body["seed"]) == ([*TALK], 5)


def test_another_variable_holds_the_key(serve, key, monkeypatch):
    server = serve()
    monkeypatch.setenv("COREA_SMALL_KEY", "another")
    of_one_question(server.engine(key_from="COREA_SMALL_KEY"))
    of_one_question(server.engine(key_from="COREA_NO_KEY"))
    assert [headers.get("Authorization") for headers in server.headers] == ["Bearer another", None]


def test_a_completion_is_streamed(serve):
    content = events(part("It is "), part(None), part("2", "stop"), USAGE, "[DONE]")
    server = serve(lambda *_: raw(STREAM, content)(None))
    *texts, rollout = of_one_question(server.engine(), TALK, streamed=True)
    assert texts == ["It is ", "2"]
    assert (rollout.completion, rollout.finished, rollout.error) == ("It is 2", True, "")
    assert (rollout.prompt_tokens, rollout.completion_tokens, rollout.logprobs) == (11, 3, None)
    [(_, body)] = server.bodies
    assert body["stream_options"] == {"include_usage": True}
    assert "logprobs" not in body


def test_a_secret_is_streamed_in_no_part(serve, key):
    texts = ["The key is ", key[:7], key[7:15], key[15:] + " or", " sk-SE", "?"]
    content = events(*map(part, texts), part("", "length"), USAGE, "[DONE]")
    server = serve(lambda *_: raw(STREAM, content)(None))
    *texts, rollout = of_one_question(server.engine(), streamed=True)
    assert "".join(texts) == rollout.completion == "The key is [secret] or sk-SE?"
    assert not rollout.finished


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (raw(STREAM, events(part("It"))), "it ended because of None"),
        (raw(STREAM, events(part("2", "stop"), "[DONE]")), "is not what was expected"),
        (raw(STREAM, events(part(7))), "a part of the completion is int"),
        (raw(STREAM, events(part("\ud800"))), "half of a surrogate pair"),
        (raw(STREAM, events("{")), "is not what was expected"),
        (raw(STREAM, events({"error": {"message": "no"}})), "APIError: no"),
        (raw(STREAM, b"data: ", b" " * 4096, endless=True), "more than 524,288 bytes"),
        (raw(STREAM, b": \n\n", wait=0.05, endless=True), "no whole answer within 0.5 s"),
        (raw(HEAD + b"Content-Encoding: gzip\r\n\r\n", b"a"), "the answer is packed"),
        (lambda _: (500, b"no"), "HTTP 500: no"),
        (lambda _: None, "RemoteProtocolError"),
    ],
)
def test_a_stream_that_fails_says_why_in_its_rollout(serve, monkeypatch, content, why):
    monkeypatch.setattr("corea.engines.server.MAX_BODY", LARGEST)
    engine = serve(lambda *_: content(None)).engine(attempts=1, timeout=0.5)
    *_, rollout = of_one_question(engine, streamed=True)
    assert why in rollout.error
    assert rollout.completion == ""


# --- an evaluation ------------------------------------------------------------------------------

QUESTIONS = [Question("sums", f"q{i}", f"{i}+1", str(i + 1), "choice") for i in range(40)]


def ask(directory, engine):
    return evaluate(
        engine, QUESTIONS, system="tiny", sampling=SAMPLING, directory=directory, part_size=5
    )


def test_a_stage_asks_a_server_again_for_what_it_lacks(serve, tmp_path, monkeypatch):
    failing = {"3+1"}

    def script(body, _):
        question = body["messages"][0]["content"].splitlines()[0]
        return (422, b"no") if question in failing else (200, good(body))

    server = serve(script)
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    asked = {"batch_size": 8, "engine": "server", "root": tmp_path}
    made = stages.evaluated("tiny", QUESTIONS[:10], SAMPLING, **asked)
    assert len(read_samples(made)) == 18
    server.bodies.clear()
    assert stages.evaluated("tiny", QUESTIONS[:10], SAMPLING, **asked) == made
    assert len(server.bodies) == 2
    failing.clear()
    stages.evaluated("tiny", QUESTIONS[:10], SAMPLING, **asked)
    assert len(read_samples(made)) == 20
    assert stages.evaluated("other", QUESTIONS[:10], SAMPLING, **asked) != made


def test_a_server_that_dies_keeps_what_it_answered(serve, tmp_path):
    answered = Counter()

    def script(body, _):
        answered["n"] += 1
        return (200, good(body)) if answered["n"] <= 30 else None

    server = serve(script)
    with pytest.raises(ServerError, match="requests in a row were not answered"):
        ask(tmp_path, server.engine(concurrency=4))
    kept = len(list(tmp_path.glob("part-*")))
    assert 1 <= kept < 8
    again = serve()
    records = ask(tmp_path, again.engine(concurrency=4))
    assert len(records.table) == 80
    assert len(again.bodies) < 80 - 10 * (kept - 4)
