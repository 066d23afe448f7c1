"""Chat templates are programs: what they may take, and that they render as transformers does."""

import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest

from corea.engines import chat_template
from corea.engines.chat_template import TemplateError, render
from corea.engines.loading import ModelError
from corea.engines.prompts import chat_prompt
from corea.tasks.decision_questions import NO_THINKING
from corea.workflow.execute import _KEEPING

PLAIN = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}{{ eos_token }}"
SPECIAL = {"eos_token": "<end>"}


def rendered(message="Hi", template=PLAIN):
    return render(template, SPECIAL, message)


def one(content):
    return "{{ " + content + " }}"


def test_the_allocators_settings_of_a_training_do_not_count_against_its_limit(monkeypatch):
    for name, value in _KEEPING.items():
        monkeypatch.setenv(name, value)
    chat_template._helper.end()
    environment = Path(f"/proc/{started()}/environ")
    if environment.exists():
        assert "MALLOC_" not in environment.read_text()
    chat_template._helper.end()


def started():
    rendered()
    return chat_template._helper.pid


LOOP = "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3
DOUBLED = (
    "{% set n = namespace(s='x' * 1000) %}{% for i in range(90) %}{% set n.s = n.s ~ n.s %}"
    "{% endfor %}{{ n.s }}"
)


@pytest.mark.parametrize(
    ("template", "told"),
    [
        (LOOP, "more than 0.3 s of CPU time"),
        ("{% if messages[0].content | length > 1 %}" + LOOP + "{% endif %}", "of CPU time"),
        (one("'x' * 10**10"), "more than 512 MiB of memory"),
        (one("'%1000000000d' % 1"), "of memory"),
        (one("[1] * 10**10"), "of memory"),
        (DOUBLED, "of memory"),
        (one("'x' * (2**20 + 9)"), "makes 1,048,585 characters of a message of 2"),
        (one("(" * 3000 + "1" + ")" * 3000), "RecursionError"),
        ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "RecursionError"),
        ("{% for %}", "TemplateSyntaxError"),
        (one("messages[0].a.b"), "UndefinedError"),
        (one("raise_exception('x' * 10**6)"), "TemplateError: xxx"),
        (one("messages.append(1)"), "SecurityError"),
        (one("messages.__class__.__mro__"), "SecurityError"),
    ],
)
def test_what_a_template_may_take_is_bounded(monkeypatch, template, told):
    # of two bounds the one that is tested comes first, on a machine however slow
    monkeypatch.setattr(chat_template, "SECONDS", 0.3 if "CPU" in told else 60.0)
    begun = time.monotonic()
    with pytest.raises(TemplateError, match=told) as caught:
        rendered(template=template)
    assert time.monotonic() - begun < 20
    assert len(str(caught.value)) < 400
    assert rendered() == "[user] Hi<end>"  # the next one is none the worse


@pytest.mark.parametrize(
    "message", ["", " a\n\nb ", "{{ 1 }}{% x %}", '"\\u0041', "\x00\u2028é😀", "x" * 10**6]
)
def test_any_message_is_said_as_it_is(message):
    assert rendered(message) == f"[user] {message}<end>"


def test_it_renders_as_the_tokenizer_does():
    from tiny_models import make_tokenizer

    tokenizer = make_tokenizer(merging=False)
    tokenizer.chat_template = (
        "{%- for message in messages %}\n  {{- message['role'] | upper }}: {{ message.content | trim }}"
        "\n{% if loop.last and add_generation_prompt %}\n    [says]\n{% endif %}{% endfor %}"
        "{{ {'a': '<é>'} | tojson }}{{ eos_token }}{% if tools %}no{% endif %}{{ pad_token }}"
    )
    for message in ("Hi", " two\nlines "):
        said = [{"role": "user", "content": message}]
        assert chat_prompt(tokenizer, message) == tokenizer.apply_chat_template(
            said, tokenize=False, add_generation_prompt=True
        )
    tokenizer.chat_template = "[{{ messages[0].role }}]"
    with pytest.raises(ModelError, match="tokenizer: its chat template cannot be used .of a user"):
        chat_prompt(tokenizer, "Hi")
    tokenizer.chat_template = {"tool_use": PLAIN}
    with pytest.raises(ModelError, match="multiple chat templates with no default"):
        chat_prompt(tokenizer, "Hi")


TAILS = {  # how templates end, from the documentation of the models
    "qwen3": (
        "<|im_start|>assistant\n{% if enable_thinking is defined and enable_thinking is false %}"
        "<think>\n\n</think>\n\n{% endif %}"
    ),
    "begins to think": r"{{ '<|im_start|>assistant\n<think>\n' }}",
}


@pytest.mark.parametrize("tail", TAILS)
def test_a_decision_without_reasoning_begins_behind_one_empty_block(tail):
    from tiny_models import make_tokenizer

    tokenizer = make_tokenizer(merging=False)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}\n{% endfor %}" + TAILS[tail]
    asked = "Hi\n<|im_start|>assistant\n"
    assert chat_prompt(tokenizer, "Hi", NO_THINKING) == asked + "<think>\n</think>\n"
    begun = "<think>\n" if "begins" in tail else ""  # or else the model writes it
    assert chat_prompt(tokenizer, "Hi") == asked + begun


def test_threads_share_the_process():
    found = {}
    threads = [
        threading.Thread(target=lambda i=i: found.update({i: rendered(f"message {i}")}))
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: f"[user] message {i}<end>" for i in range(8)}


def test_a_process_that_was_ended_is_started_again(monkeypatch):
    rendered()
    os.kill(chat_template._helper.pid, signal.SIGKILL)
    assert rendered() == "[user] Hi<end>"
    # one that was stopped is not waited for without an end
    monkeypatch.setattr(chat_template, "_PATIENCE", 0.2)
    stopped = psutil.Process(chat_template._helper.pid)
    stopped.suspend()
    with pytest.raises(TemplateError, match="no text within 0.2 s"):
        rendered()
    assert not stopped.is_running()
    monkeypatch.undo()
    assert rendered() == "[user] Hi<end>"


def test_it_is_given_no_key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-SECRET")
    monkeypatch.setenv("HF_TOKEN", "hf-SECRET")
    chat_template._helper.end()
    rendered()
    environment = Path(f"/proc/{chat_template._helper.pid}/environ")
    if not environment.exists():
        pytest.skip("a system without /proc")
    assert b"SECRET" not in environment.read_bytes()
