"""GGUF files: written out once as models that compute the same, and refused by name."""

import json
import struct

import pytest

torch = pytest.importorskip("torch")
gguf = pytest.importorskip("gguf", reason="GGUF files need the extra `train`")

from tiny_gguf import TEMPLATE, TOKENS, write_gguf  # noqa: E402
from tokenizers import Regex, pre_tokenizers  # noqa: E402

from corea import stages  # noqa: E402
from corea.engines import gguf_files  # noqa: E402
from corea.engines.base import Sampling  # noqa: E402
from corea.engines.gguf_files import read_header  # noqa: E402
from corea.engines.loading import (  # noqa: E402
    ModelError,
    load_model,
    load_tokenizer,
    model_facts,
    model_folder,
    template_warning,
)
from corea.engines.prompts import chat_prompt  # noqa: E402
from corea.engines.transformers_engine import open_model  # noqa: E402


@pytest.fixture(autouse=True)
def own_store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("tied", [True, False])
def test_a_file_is_the_model_it_was_written_from(tmp_path, tied, capfd):
    written = write_gguf(tmp_path / "m.gguf", tied=tied)
    model, _ = load_model(tmp_path / "m.gguf", device="cpu")
    assert capfd.readouterr() == ("", "")
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied
    assert model.dtype == torch.float32
    assert not hasattr(model.config, "quantization_config")
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, written(ids).logits, atol=1e-5)
    total = sum(weight.numel() for weight in written.parameters())
    assert stages.count_weights(tmp_path / "m.gguf") == read_header(tmp_path / "m.gguf").weights
    assert stages.count_weights(tmp_path / "m.gguf") == total
    assert not list(model_folder(tmp_path / "m.gguf").glob("*.bin"))


@pytest.mark.parametrize(("kind", "error"), [("Q8_0", 0.02), ("Q4_1", 0.2)])
def test_numbers_of_few_bits_are_written_out_and_named(tmp_path, kind, error):
    written = write_gguf(tmp_path / "m.gguf", kind=kind)
    model, _ = load_model(tmp_path / "m.gguf", device="cpu")
    for found, exact in zip(model.parameters(), written.parameters(), strict=True):
        assert torch.allclose(found, exact, atol=error)
    assert any(
        not torch.equal(found, exact)
        for found, exact in zip(model.parameters(), written.parameters(), strict=True)
    )
    facts = model_facts("m.gguf", "bfloat16")
    assert facts["precision"] == "bfloat16"
    assert facts["weights"].startswith("of a GGUF file (SHA-256 ")
    assert facts["weights"].endswith(f"most of them numbers in {kind}, written out as float32")
    assert model_facts("m.gguf")["precision"] == "float32"
    assert list(model_facts(model_folder("m.gguf"))) == ["precision", "weights"]


def test_a_file_is_written_out_once_and_anew_when_it_changes(tmp_path, monkeypatch):
    write_gguf(tmp_path / "m.gguf")
    folder = model_folder("m.gguf")
    identity = stages.identity("m.gguf")
    assert folder.parent.as_posix() == "build/store"
    (tmp_path / "other.gguf").write_bytes((tmp_path / "m.gguf").read_bytes())
    with monkeypatch.context() as patched:
        patched.setattr(gguf_files, "_write_out", lambda *_: 1 / 0)
        assert model_folder("other.gguf") == model_folder("m.gguf") == folder
        monkeypatch.setattr(gguf_files, "_written", {})  # another process
        assert model_folder("m.gguf") == folder
    assert stages.identity("other.gguf") == identity
    write_gguf(tmp_path / "m.gguf", tied=False)
    assert model_folder("m.gguf") != folder
    assert stages.identity("m.gguf") != identity
    (folder / "config.json").write_text("{}")
    monkeypatch.setattr(gguf_files, "_written", {})
    assert json.loads((model_folder("other.gguf") / "config.json").read_text()) != {}
    assert stages.identity("other.gguf") == identity


# --- the tokenizer ----------------------------------------------------------------------------

TEXTS = ["ab a12 12", "  12", "   a", "\n   1\n  ab", "<|im_start|>user\nab<|im_end|>", "é12"]


def test_the_tokenizer_keeps_special_tokens_whole_and_takes_digits_one_by_one(tmp_path):
    write_gguf(tmp_path / "m.gguf")
    tokenizer = load_tokenizer("m.gguf")
    assert len(tokenizer) == len(TOKENS)
    prompt = chat_prompt(tokenizer, "ab")
    assert prompt == "<|im_start|>user\nab<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(prompt)["input_ids"]
    assert [TOKENS[i] for i in ids[:8]] == [
        *("<|im_start|>", "u", "s", "e", "r", "Ċ", "ab", "<|im_end|>")
    ]
    assert tokenizer.decode(ids) == prompt
    # what stands before a digit ends there, unlike in GPT-2's rule
    found = [TOKENS[i] for i in tokenizer("a   1   b")["input_ids"]]
    assert found == ["a", "ĠĠĠ", "1", "ĠĠ", "Ġ", "b"]
    for text in TEXTS:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize("pre", ["smollm", "gpt-2", "qwen2", "llama-bpe"])
def test_text_is_split_by_the_rule_that_the_file_names(tmp_path, pre):
    from transformers.integrations.gguf import gguf_tokenizer_mapping as known

    write_gguf(tmp_path / "m.gguf", pre=pre)
    tokenizer = load_tokenizer("m.gguf")
    expected = {
        "smollm": [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ],
        "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    }
    if pre in expected:
        rule = pre_tokenizers.Sequence(expected[pre])
    else:
        pattern = Regex(known.GGUF_PRE_TOKENIZER_SPLITS[pre])
        rule = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(pattern, "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    found = tokenizer.backend_tokenizer.pre_tokenizer
    for text in [*TEXTS, "it's 1234   12"]:
        assert found.pre_tokenize_str(text) == rule.pre_tokenize_str(text)


@pytest.mark.parametrize(
    ("end", "template", "ends"),
    [(2, TEMPLATE, [2]), (0, TEMPLATE, [0, 2]), (0, "", [0]), (0, "{{ messages }}", [0])],
)
def test_a_chat_ends_where_its_template_ends_a_message(tmp_path, end, template, ends):
    write_gguf(tmp_path / "m.gguf", end=end, template=template)
    folder = model_folder("m.gguf")
    config = json.loads((folder / "generation_config.json").read_text())
    assert config["eos_token_id"] == ends


def test_an_engine_answers_in_the_files_chat_template(tmp_path):
    write_gguf(tmp_path / "m.gguf")
    engine = open_model("m.gguf", precision="bfloat16")
    assert engine.chat
    assert engine.model.dtype == torch.bfloat16
    (rollout,) = engine.generate(["ab"], Sampling(0.0, 3))[0]
    assert rollout.prompt_tokens == len(engine.tokenizer(chat_prompt(engine.tokenizer, "ab"))[0])


def test_a_model_without_a_chat_template_is_warned_of(tmp_path):
    write_gguf(tmp_path / "chat.gguf")
    assert template_warning("chat.gguf") == ""
    write_gguf(tmp_path / "plain.gguf", template="")
    told = template_warning("plain.gguf")
    assert "plain.gguf has no chat template" in told
    assert "chat_template.jinja" in told


# --- what is refused --------------------------------------------------------------------------


def patched(at, form, value):
    """A damage: another number at a place of the file."""

    def damage(path):
        content = bytearray(path.read_bytes())
        struct.pack_into(f"<{form}", content, at, value)
        path.write_bytes(content)

    return damage


def cut(share):
    return lambda path: path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


REFUSED = {
    "not GGUF": ({}, patched(0, "I", 0), r"starts with b'\\x00\\x00\\x00\\x00'; expected b'GGUF'"),
    "empty": ({}, cut(0), "starts with b''; expected b'GGUF'"),
    "version": ({}, patched(4, "I", 7), "is GGUF of version 7; expected 2 or 3"),
    "tensors": ({}, patched(8, "Q", 2**60), r"1,152,921,504,606,846,976 tensors and .*fit into"),
    "fields": ({}, patched(16, "Q", 10**6), r"tensors and 1,000,000 fields; expected no more"),
    "a text": ({}, patched(24, "Q", 2**62), r"its header is damaged, or .* bytes are stated"),
    "cut header": ({}, cut(0.05), "its header is damaged, or the file truncated.*Fetch it again"),
    "cut weights": ({}, cut(0.9), r"has [\d,]+ bytes; expected [\d,]+ by its header.*truncated"),
    "layers": ({"block_count": 10**9}, None, "llama.block_count is 1,000,000,000; expected at m"),
    "width": ({"embedding_length": 2**31}, None, "llama.embedding_length is 2,147,483,648; exp"),
    "words": ({"vocab_size": 2**31}, None, "llama.vocab_size is 2,147,483,648; expected at most"),
    "another": (
        {"architecture": "rwkv7"},
        None,
        "'rwkv7', which transformers does not read from GGUF; it reads bloom, .*llama, .*safetens",
    ),
    "words only": ({"architecture": "t5"}, None, "its architecture is 't5', which"),
    "scaled": ({"llama.rope.scaling.type": "yarn"}, None, r"scales its positions \('yarn'\)"),
    "split": ({"pre": "deepseek-v9"}, None, "splits text as 'deepseek-v9', which"),
    "lacking": ({"leave_out": ["ffn_up"]}, None, "m.gguf: (transformers cannot read it|holds)"),
    "alignment": ({"general.alignment": 0}, None, "general.alignment is 0; expected some bytes"),
}


@pytest.mark.parametrize(("fields", "damage", "told"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_read_is_named(tmp_path, fields, damage, told, capfd):
    path = tmp_path / "m.gguf"
    write_gguf(path, **fields)
    if damage:
        damage(path)
    with pytest.raises(ModelError, match=told) as raised:
        model_folder(path)
    assert str(raised.value).startswith("m.gguf: ")
    assert str(tmp_path) not in str(raised.value)
    assert capfd.readouterr().err == ""
    assert not list(tmp_path.glob("build/store/*/config.json"))


def test_weights_that_transformers_leaves_out_are_not_left_out(tmp_path, monkeypatch):
    from corea.engines.gguf_files import Header

    write_gguf(tmp_path / "m.gguf")
    one_more = property(lambda self: sum(a[0][0] for a in self.tensors.values()))
    monkeypatch.setattr(Header, "weights", one_more)
    with pytest.raises(ModelError, match=r"of which transformers makes a model of [\d,]+: it does"):
        model_folder("m.gguf")


def test_a_file_that_is_not_there_and_a_package_that_is_missing_are_named(tmp_path, monkeypatch):
    with pytest.raises(ModelError, match=r"no/m.gguf: no such file"):
        model_folder("no/m.gguf")
    write_gguf(tmp_path / "m.gguf")
    monkeypatch.setattr(gguf_files.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ModelError, match="the package gguf is not installed.*extra `train`"):
        model_folder("m.gguf")
