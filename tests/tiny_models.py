"""Tiny models and tokenizers of the tests of engines."""

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: E402

TEXTS = [rf"{a}+{b}: {a}+{b}={a + b}. \boxed{{{a + b}}} \confidence{{0.{a}}}" for a in range(10) for b in range(9)]  # fmt: skip
PROMPTS = ["3+4:", "1+1:", "3+4: 3+", "2+2: 2+2=4. So", "0"]


def make_tokenizer(*, merging):
    """A byte-level tokenizer; a merging one has tokens across ``{0.`` and the like."""
    return trained(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not merging), TEXTS)


def trained(splitting, texts):
    """A byte-level tokenizer that merges within what a text is split into."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = splitting
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<end>"
    )


GAPS = ("\n</think>\n", "\n</think>\n\n", " </think> \n")
"""How chat templates part reasoning and decision."""


def make_merging_tokenizer():
    r"""A byte-level tokenizer that splits as those of Qwen do: ``>\n`` and ``>\n\n`` are one token each."""
    pieces = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    splitting = [
        pre_tokenizers.Split(Regex(pieces), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    return trained(pre_tokenizers.Sequence(splitting), REASONED)


REASONED = [
    f"{question}?<think>\n{question} so {letter}{gap}{letter}"
    for question in "1234"
    for gap in GAPS
    for letter in "ABCDE"
]


def make_model(vocab_size=300, kind="Qwen2", **settings):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = getattr(transformers, f"{kind}Config")(
            vocab_size=vocab_size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            initializer_range=0.2,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=1,
            tie_word_embeddings=False,
            **{"max_position_embeddings": 128} | settings,
        )
        return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


def taught_model(tokenizer, texts=TEXTS):
    """A model that has seen the texts often enough to end, and to state confidences."""
    model = make_model(len(tokenizer))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    rows = [tokenizer(text + "<end>")["input_ids"] for text in texts]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    labels = ids.masked_fill(ids == 0, -100)
    for _ in range(60):
        loss = model(input_ids=ids, attention_mask=(ids != 0).long(), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def flat(rollouts):
    return [rollout for group in rollouts for rollout in group]


def ids_of(rollouts):
    return [rollout.token_ids.tolist() for rollout in flat(rollouts)]


@torch.no_grad()
def taught(model, prompt_ids, completion_ids):
    """Log-probabilities and last states by one pass over the whole text, nothing padded."""
    ids = torch.tensor([[*prompt_ids, *completion_ids]])
    output = model(input_ids=ids, output_hidden_states=True)
    predicting = slice(len(prompt_ids) - 1, -1)
    logprobs = output.logits[0, predicting].float().log_softmax(-1)
    chosen = logprobs[range(len(completion_ids)), torch.tensor(completion_ids)]
    return chosen.numpy(), output.hidden_states[-1][0, predicting].float().mean(0).numpy()


def behind(model, tokenizer, prompt, rollout, text):
    """The token of a rollout that completes a text, and whether each one after it is the likeliest."""
    before, ids = tokenizer(prompt)["input_ids"], rollout.ids
    reach = [n for n in range(len(ids) + 1) if text in tokenizer.decode(ids[:n])]
    if not reach:
        return "", []
    with torch.no_grad():
        likeliest = model(torch.tensor([before + ids])).logits[0, len(before) - 1 : -1].argmax(-1)
    return tokenizer.decode(ids[reach[0] - 1]), [ids[n] == likeliest[n] for n in reach[:-1]]
