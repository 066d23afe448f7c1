"""A server that answers, stutters, lies and dies; the engine that asks it."""

import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from corea import stages
from corea.engines import opened
from corea.evaluation import evaluate, read_samples
from corea.generate import Sampling
from corea.questions import Question
from corea.server import ServerEngine, ServerError

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


class Server:
    """Answers by a script: a function of the body and of how often the same was asked."""

    def __init__(self, script=lambda body, times: (200, good(body)), models=("tiny",)):
        self.script, self.models = script, models
        self.bodies, self.headers, self.times, self.engines = [], [], Counter(), []
        self.at_once = self.most = 0
        self.lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
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
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def engine(self, **changed):
        settings = {"url": self.url, "timeout": 20.0, "attempts": 3, "first_wait": 0.01}
        self.engines.append(ServerEngine("tiny", **settings | changed))
        return self.engines[-1]


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
        return 200, {
            "choices": [
                {
                    "text": " = 2",
                    "finish_reason": "length",
                    "logprobs": {"token_logprobs": [-0.25, 0.0]},
                }
            ],
            "usage": {"prompt_tokens": 3, "completion_tokens": 2},
        }

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

    chat_template = "there is one"
    bos_token = None

    def __len__(self):
        return 128

    def __call__(self, texts, add_special_tokens):
        return {"input_ids": [[*([0] * add_special_tokens), *text.encode()] for text in texts]}

    def apply_chat_template(self, said, tokenize, add_generation_prompt):
        assert (tokenize, add_generation_prompt) == (False, True)
        return f"<{said[0]['role']}>{said[0]['content']}<says>"


@pytest.mark.parametrize("chat", [False, True])
def test_prompts_can_be_sent_as_ids(serve, chat):
    def script(body, _):
        said = body["prompt"]
        text = said if isinstance(said, str) else bytes(said[1:]).decode()
        choice = {"text": text, "finish_reason": "stop", "logprobs": None}
        return 200, {
            "choices": [choice],
            "usage": {"prompt_tokens": len(said), "completion_tokens": 2},
        }

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
    from test_generate import make_model, make_tokenizer

    folder, tokenizer = tmp_path / "tiny", make_tokenizer(merging=True)
    tokenizer.chat_template = template or None
    make_model(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)

    def script(body, _):
        choice = {"text": tokenizer.decode(body["prompt"]), "finish_reason": "stop"}
        return 200, {
            "choices": [choice],
            "usage": {"prompt_tokens": len(body["prompt"]), "completion_tokens": 1},
        }

    server = serve(script)
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


def broken(body, how):
    answer = good(body)
    if how == "no usage":
        del answer["usage"]
    elif how == "usage of text":
        answer["usage"]["prompt_tokens"] = "11"
    elif how == "no choice":
        answer["choices"] = []
    elif how == "a list":
        answer = [answer]
    elif how == "completion of numbers":
        answer["choices"][0]["message"]["content"] = [1, 2]
    elif how == "log-probability above 0":
        answer["choices"][0]["logprobs"]["content"][0]["logprob"] = 0.5
    elif how == "log-probability of text":
        answer["choices"][0]["logprobs"]["content"][0]["logprob"] = "x"
    return json.dumps(answer).replace("-0.5", "NaN" if how == "not finite" else "-0.5").encode()


FAILURES = {
    "500": lambda body: (500, b"<html>oops</html>"),
    "502": lambda body: (502, b""),
    "429": lambda body: (429, {"error": "slow down"}, {"Retry-After": "0"}),
    "429 with a date": lambda body: (
        429, b"", {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"},
    ),
    "408": lambda body: (408, b""),
    "connection breaks off": lambda body: None,
    "body is cut": lambda body: (200, broken(body, "")[:40], {}, 4000),
    "no JSON": lambda body: (200, b"\xff\xfeI am a teapot"),
    "truncated JSON": lambda body: (200, broken(body, "")[:60]),
    **{
        how: lambda body, how=how: (200, broken(body, how))
        for how in (
            *("no usage", "usage of text", "no choice", "a list", "completion of numbers"),
            *("log-probability above 0", "log-probability of text", "not finite"),
        )
    },
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


def test_an_answer_that_was_filtered_is_a_failed_row(serve):
    def script(body, _):
        answer = good(body)
        answer["choices"][0]["finish_reason"] = "content_filter"
        return 200, answer

    [[rollout]] = serve(script).engine().generate(["1+1"], Sampling(0.0, 20))
    assert rollout.error == "it ended because of 'content_filter'"


def test_an_answer_without_log_probabilities_or_text_is_one(serve):
    def script(body, _):
        answer = good(body)
        answer["choices"][0]["logprobs"] = None
        answer["choices"][0]["message"]["content"] = None
        return 200, answer

    [[rollout]] = serve(script).engine(logprobs=False).generate(["1+1"], Sampling(0.0, 20))
    assert (rollout.completion, rollout.logprobs, rollout.error) == ("", None, "")


def test_retry_after_is_waited_for(serve):
    def script(body, times):
        return (200, good(body)) if times > 1 else (429, b"", {"Retry-After": "1"})

    begun = time.monotonic()
    serve(script).engine().generate(["1+1"], Sampling(0.0, 20))
    assert 1.0 <= time.monotonic() - begun < 5


def test_a_server_that_is_silent_is_out_of_time(serve):
    def script(body, _):
        time.sleep(3)
        return 200, good(body)

    begun = time.monotonic()
    [[rollout]] = serve(script).engine(timeout=0.3, attempts=2).generate(["1+1"], Sampling(0.0, 20))
    assert rollout.error.startswith("ReadTimeout")
    assert time.monotonic() - begun < 3


def test_too_long_an_answer_is_not_read(serve, monkeypatch):
    monkeypatch.setattr("corea.server.MAX_BODY", 1000)
    server = serve(lambda body, _: (200, good(body, text="x" * 5000)))
    [[rollout]] = server.engine().generate(["1+1"], Sampling(0.0, 20))
    assert rollout.error == "the answer has more than 1,000 bytes (3 attempts)"


@pytest.mark.parametrize(
    ("status", "complaint"),
    [
        (401, "HTTP 401: no.*Set OPENAI_API_KEY to a key"),
        (403, "Set OPENAI_API_KEY"),
        (404, "It has these models: other, another; asked for tiny"),
    ],
)
def test_what_no_question_can_change_ends_it(serve, status, complaint):
    server = serve(lambda body, _: (status, b"no"), models=("other", "another"))
    engine = server.engine(concurrency=2)
    with pytest.raises(ServerError, match=complaint):
        engine.generate(["1+1"] * 50, Sampling(0.6, 20))
    assert len(server.bodies) <= 4
    with pytest.raises(ServerError, match=complaint):
        engine.generate(["1+1"], Sampling(0.6, 20))


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
    ):
        with pytest.raises(ValueError, match=complaint):
            ServerEngine(**{"model": "tiny", "url": url} | settings)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://elsewhere/v1/")
    assert ServerEngine("tiny")._address == "http://elsewhere/v1"
    first = ServerEngine("tiny").fingerprint
    assert first == ServerEngine("tiny", url).fingerprint  # the same model, wherever it is
    assert first != ServerEngine("other").fingerprint
    assert first != ServerEngine("tiny", chat=False).fingerprint
    monkeypatch.setattr(Letters, "chat_template", None)
    with pytest.raises(ValueError, match="the tokenizer has no chat template"):
        ServerEngine("tiny", tokenizer=Letters())


# --- an evaluation ------------------------------------------------------------------------------

QUESTIONS = [Question("sums", f"q{i}", f"{i}+1", str(i + 1), "choice") for i in range(40)]


def ask(directory, engine):
    return evaluate(
        engine,
        QUESTIONS,
        system="tiny",
        sampling=SAMPLING,
        directory=directory,
        confidence_grid=(),
        part_size=5,
    )


def test_an_evaluation_goes_on_past_failures_and_asks_again_for_them_alone(serve, tmp_path):
    failing = {"7+1", "23+1"}

    def script(body, _):
        question = body["messages"][0]["content"].splitlines()[0]
        return (500, b"no") if question in failing else (200, good(body))

    server = serve(script)
    records = ask(tmp_path, server.engine(concurrency=16))
    assert len(read_samples(tmp_path)) == len(records.table) == 76
    lacking = read_samples(tmp_path, failed=True).query("error != ''")
    assert len(lacking) == 4
    assert lacking["error"].str.startswith("HTTP 500: no").all()
    assert any("4 of 80 answer(s) could not be had" in note for note in records.notes)
    assert records.table["correct"].all()
    assert set(records.table["confidence"]) == {0.8}
    server.bodies.clear()
    failing.clear()
    records = ask(tmp_path, server.engine(concurrency=16))
    assert len(server.bodies) == 4
    assert len(records.table) == 80
    assert not records.notes
    assert len(read_samples(tmp_path)) == 80


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
