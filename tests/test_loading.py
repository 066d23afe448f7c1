"""Models as files: what is read, and what is refused by name."""

import json
import re
from functools import partial
from pathlib import Path

import httpx
import huggingface_hub
import pytest
import yaml

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tiny_models import PROMPTS, TEXTS, ids_of, make_model, make_tokenizer  # noqa: E402

from corea.engines.base import Sampling  # noqa: E402
from corea.engines.loading import (  # noqa: E402
    ModelError,
    load_model,
    load_tokenizer,
    model_folder,
)
from corea.engines.transformers_engine import TransformersEngine  # noqa: E402


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(merging=False)


@pytest.fixture(scope="module")
def model(tokenizer):
    return make_model(len(tokenizer))


@pytest.fixture
def folder(tmp_path, model, tokenizer, capfd):
    model.save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    capfd.readouterr()
    return tmp_path / "m"


def test_a_model_is_read_as_it_was_written(folder, model, tokenizer, capfd):
    read, its_tokenizer = load_model(folder, device="cpu")
    assert capfd.readouterr() == ("", "")
    assert not read.training
    assert its_tokenizer.padding_side == "left"
    for text in [*TEXTS, *PROMPTS]:
        assert its_tokenizer(text)["input_ids"] == tokenizer(text)["input_ids"]
    sampling = Sampling(1.0, 20)
    engines = (TransformersEngine(read, its_tokenizer), TransformersEngine(model, tokenizer))
    assert engines[0].fingerprint == engines[1].fingerprint
    assert ids_of(engines[0].generate(PROMPTS, sampling)) == ids_of(engines[1].generate(PROMPTS, sampling))  # fmt: skip
    assert load_model(str(folder), dtype="bfloat16")[0].dtype == torch.bfloat16


def test_a_tokenizer_is_not_replaced_by_that_of_the_architecture(tmp_path, model):
    tokenizer = make_tokenizer(merging=True)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    _, read = load_model(tmp_path)
    assert read(TEXTS[0])["input_ids"] == tokenizer(TEXTS[0])["input_ids"]


@pytest.mark.parametrize("missing", ["", "tokenizer_config.json", "generation_config.json"])
def test_a_tokenizer_alone_is_read_as_with_its_model(folder, tokenizer, missing, capfd):
    for name in filter(None, ("tokenizer_config.json" if missing else "", missing)):
        (folder / name).unlink(missing_ok=True)
    alone, (_, beside) = load_tokenizer(folder), load_model(folder)
    assert (alone.eos_token, alone.pad_token) == ("<end>", "<end>" if missing else "<pad>")
    assert capfd.readouterr() == ("", "")
    for name in ("eos_token", "pad_token", "padding_side"):
        assert getattr(alone, name) == getattr(beside, name)
    assert alone(TEXTS)["input_ids"] == beside(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]


def test_progress_bars_are_as_they_were(folder):
    logging = transformers.utils.logging
    verbosity = logging.get_verbosity()
    for switch in (logging.disable_progress_bar, logging.enable_progress_bar):
        switch()
        shown = logging.is_progress_bar_enabled()
        load_model(folder)
        assert logging.is_progress_bar_enabled() == shown
    assert logging.get_verbosity() == verbosity


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def without_layer(path):
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})


def grow(path, size):
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as stream:
        stream.truncate(size)  # of nothing, which takes no space


def with_header(path, size):
    path.write_bytes(size.to_bytes(8, "little") + path.read_bytes()[8:])


def ends(path, ids):
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": ids}))


def with_width(path):
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"intermediate_size": 48}))


def write(text):
    return lambda path: path.write_text(text)


DAMAGED = [
    ("config.json", Path.unlink, "no config.json; expected"),
    ("tokenizer.json", Path.unlink, "no tokenizer.json; expected"),
    ("model.safetensors", Path.unlink, "found none; expected weights as .*safe"),
    (
        "model.safetensors",
        lambda path: path.rename(path.with_name("pytorch_model.bin")),
        "found pytorch_model.bin; expected weights as .*safetensors",
    ),
    ("model.safetensors", truncate, "cannot be read .*Safetensor"),
    ("model.safetensors", without_layer, "the weights are not .*layers.1.mlp.up_proj"),
    ("config.json", with_width, ".*"),
    ("config.json", write("{"), "cannot be read"),
    ("tokenizer.json", write("{}"), "cannot be read"),
]
for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
    for text, told in {
        "[" * 10**5: "RecursionError",
        '{"a":' * 10**5: "RecursionError",
        "[]": "is a list; expected an object",
        "null": "is a NoneType",
    }.items():
        DAMAGED.append((name, write(text), rf"cannot be read \({name}.*{told}"))
for name, size in {
    "config.json": 2**24 + 1,
    "special_tokens_map.json": 2**30,
    "tokenizer.json": 2**27 + 1,
    "chat_template.jinja": 2**20 + 1,
    "additional_chat_templates/a.jinja": 2**30,
    "merges.txt": 2**30,
}.items():
    DAMAGED.append((name, partial(grow, size=size), f"{name} has {size:,} bytes; expected at most"))
for size in (2**63, 2**25 + 1, 10**6):
    told = rf"cannot be read \(mod.* {size:,} bytes"
    DAMAGED.append(("model.safetensors", partial(with_header, size=size), told))
for ids, told in ((300, "300"), ([1, 10**6], "1000000"), (-1, "-1")):
    told = f"the end token {told} is not in"
    DAMAGED.append(("generation_config.json", partial(ends, ids=ids), told))
for template, told in {
    "<u>What?<a>": "of a user's message 'Is 12 .*makes '<u>What.<a>', without",
    "{% for %}": "TemplateSyntaxError",
    "{{ messages[0].content + 1 }}": "TypeError",
    "{{ raise_exception('no users') }}": "TemplateError: no users",
    "{{ messages[0].content * 10**10 }}": "it takes more than 512 MiB",
}.items():
    told = f"its chat template cannot be used .{told}"
    DAMAGED.append(("chat_template.jinja", write(template), told))


@pytest.mark.parametrize(("file", "damage", "message"), DAMAGED)
def test_a_damaged_model_is_named(folder, file, damage, message, capfd):
    damage(folder / file)
    message = f"m: {message}"
    with pytest.raises(ModelError, match=message):
        load_model(folder)
    if "weights" not in message and file != "model.safetensors" and damage is not with_width:
        with pytest.raises(ModelError, match=message):
            load_tokenizer(folder)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("path", ["/no/such/folder", "./models/mine", "a/b/c"])
def test_a_folder_that_is_not_there_is_named(path):
    with pytest.raises(ModelError, match="no such folder"):
        load_model(path)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            "GatedRepoError",
            "a/b: not to be had without agreement. Ask for access .* `hf auth login`",
        ),
        ("RepositoryNotFoundError", "a/b: neither a folder nor a model on the hub"),
        (None, r"a/b: cannot be fetched \(ConnectionError: no route\). Connect to the network, or"),
    ],
)
def test_a_model_that_the_hub_does_not_give_says_what_to_do(monkeypatch, error, told):
    def refuse(name, **_):
        if error is None:
            raise ConnectionError("no route")
        answer = httpx.Response(403, request=httpx.Request("GET", "http://hub"))
        raise getattr(huggingface_hub.errors, error)("no", response=answer)

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(ModelError, match=told):
        load_model("a/b@0123")


def test_models_of_profiles_are_those_of_a_commit(monkeypatch):
    asked = {}

    def note(name, revision, **_):
        asked[name] = revision
        raise ConnectionError("no network in tests")

    monkeypatch.setattr("huggingface_hub.snapshot_download", note)
    root = Path(__file__).parent.parent
    texts = [path.read_text("utf-8") for path in (root / "profiles").glob("*.yaml")]
    texts += [path.read_text("utf-8") for path in (root / "notebooks").glob("*.ipynb")]
    named = {name for text in texts for name in re.findall(r"(?:Qwen|meta-llama)/[\w.-]+", text)}
    for path in (root / "profiles").glob("*.yaml"):  # what a package holds is not read from the hub
        packaged = yaml.safe_load(path.read_text("utf-8")).get("models", {})
        named -= {file["model"] for file in packaged.values()}
    assert len(named) >= 8
    for name in [*named, "a/b", "Qwen/Qwen3-4B@0123"]:
        with pytest.raises(ModelError, match="cannot be fetched"):
            model_folder(name)
    assert asked.pop("a/b") is None
    assert all(re.fullmatch("[0-9a-f]{40}|0123", revision) for revision in asked.values())
    assert asked["Qwen/Qwen3-4B"] == "0123"  # one that is named counts
