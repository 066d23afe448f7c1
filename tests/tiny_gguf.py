"""A tiny GGUF file, written as llama.cpp's converter writes one."""

import pytest

gguf = pytest.importorskip("gguf", reason="GGUF files need the extra `train`")
pytest.importorskip("transformers")

from tiny_models import make_model  # noqa: E402
from transformers.convert_slow_tokenizer import bytes_to_unicode  # noqa: E402

HEADS, KEYS = 2, 1
TENSORS = {  # of a layer: transformers' name and GGUF's
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TOKENS = [*SPECIAL, *bytes_to_unicode().values(), "12", "ab", "Ġa", "ĠĠ", "ĠĠĠ"]
MERGES = ["a b", "Ġ a", "Ġ Ġ", "ĠĠ Ġ"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def permuted(weight, heads):
    """Rows of queries and keys in llama.cpp's order."""
    size = weight.shape[0] // heads // 2
    return weight.reshape(heads, 2, size, -1).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path, *, tied=True, kind="F32", template=TEMPLATE, end=2, leave_out=(), **fields):
    """Write a Llama of two layers; return the model of transformers. ``fields`` are set last."""
    model = make_model(len(TOKENS), "Llama")
    if tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    config = model.config
    numbers = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KEYS,
        "rope.dimension_count": config.head_dim,
        "vocab_size": len(TOKENS),
    }
    architecture = fields.pop("architecture", "llama")
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in numbers.items():
        writer.add_uint32(f"{architecture}.{name}", fields.pop(name, value))
    writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", config.rms_norm_eps)
    writer.add_float32(f"{architecture}.rope.freq_base", 10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(fields.pop("pre", "smollm"))
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(end)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(False)
    if template:
        writer.add_chat_template(template)
    for name, value in fields.items():
        (writer.add_string if isinstance(value, str) else writer.add_uint32)(name, value)

    def add(name, weight):
        values = weight.detach().numpy().copy()
        stored = gguf.GGMLQuantizationType[kind]
        if values.ndim == 1 or stored == gguf.GGMLQuantizationType.F32:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quantize(values, stored), raw_dtype=stored)

    add("token_embd.weight", model.model.embed_tokens.weight)
    for i, layer in enumerate(model.model.layers):
        for ours, theirs in TENSORS.items():
            if theirs not in leave_out:
                weight = layer.get_submodule(ours).weight.detach()
                weight = permuted(weight, HEADS) if theirs == "attn_q" else weight
                weight = permuted(weight, KEYS) if theirs == "attn_k" else weight
                add(f"blk.{i}.{theirs}.weight", weight)
    add("output_norm.weight", model.model.norm.weight)
    if not tied:
        add("output.weight", model.lm_head.weight)
    for step in ("header_to_file", "kv_data_to_file", "tensors_to_file"):
        getattr(writer, f"write_{step}")()
    writer.close()
    return model
