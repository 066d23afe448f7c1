"""The decision world: its questions, what its corpus says, what can be known of them."""

import itertools
import re
from dataclasses import replace

import numpy as np
import pytest

from corea.decisions.tokens import decision_position, option_ids
from corea.tasks import microworld
from corea.tasks.decision_questions import (
    LETTERS,
    NO_THINKING,
    VERDICTS,
)
from corea.tasks.decision_world import (
    DATASETS,
    DecisionWorld,
    _digit,
    build_tokenizer,
    corpus,
    extend,
    questions,
)
from corea.tasks.decision_world import sampler_accuracy as known_accuracy
from corea.tasks.microworld import EOS_ID, SPLITS, World

OWN = DecisionWorld()
FEW = DecisionWorld(World(names=12))
SURE = replace(FEW, world=World(names=12, name_shares=(1.0,), noise_levels=(0.0,)))
CHOICES = DATASETS[:2]


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(OWN)


def digits_of(own):
    """What a corpus without noise says of each name, read from single names."""
    rows = corpus(replace(SURE, direct=0.0, mixture=(1, 0, 0, 0)), 3000, seed=1)
    found = {}
    for row in rows:
        names = re.findall(r"\b[b-z][aeiou][b-z][aeiou]\b", asked(row["prompt"]))
        thought = re.search(r"<think>\n([0-9])\.\n", row["completion"])
        if len(names) == 1 and thought:
            found[names[0]] = int(thought[1])
    return found


def asked(prompt):
    return prompt.partition("Question: ")[2].partition("\nOptions")[0]


@pytest.mark.parametrize("dataset", DATASETS)
def test_questions_are_deterministic_distinct_and_begin_alike(dataset):
    first = questions(OWN, dataset, "test", 120)
    assert first == questions(OWN, dataset, "test", 120)
    assert first[:30] == questions(OWN, dataset, "test", 30)
    assert len({(q.text, q.fact) for q in first}) == len({q.question_id for q in first}) == 120
    assert len({q.gold for q in first}) == len(first[0].options)
    counts = [len(re.findall("[a-z]{4}", re.sub("What|which|digit", "", q.text))) for q in first]
    if dataset not in CHOICES:
        assert [q.level for q in first] == [count + 1 for count in counts]


@pytest.mark.parametrize("dataset", DATASETS)
def test_splits_share_no_question_with_each_other_or_the_corpus(dataset):
    def asks(question):
        alone = len(re.findall("[a-z]{4}|[0-9]", question.text.removeprefix("What"))) == 1
        fact = f"Fact: {question.fact}\n" if question.fact and alone else ""  # tells them apart
        shown = f"{fact}Question: {question.text}\n"
        return shown if dataset in CHOICES else f'Input:\n"{question.text}"\n'

    texts = {s: {asks(q) for q in questions(OWN, dataset, s, 150)} for s in SPLITS}
    for one, other in itertools.combinations(SPLITS, 2):
        assert not texts[one] & texts[other]
    only = replace(OWN, mixture=tuple(float(name == dataset) for name in DATASETS))
    prompts = "\n".join(row["prompt"] for row in corpus(only, 2000, seed=0))
    for shown in set().union(*texts.values()):
        assert shown not in prompts


def test_gold_decisions_are_what_a_noise_free_corpus_leads_to():
    digits = digits_of(SURE)
    assert len(digits) == 12
    for q in questions(FEW, "choices", "test", 40):
        value = sum(
            digits[part] if part in digits else int(part)
            for part in re.findall("[0-9]|" + "|".join(digits), q.text)
        )
        assert q.gold == LETTERS[value % 5]
    for q in questions(FEW, "messages", "test", 40):
        assert q.gold == VERDICTS[any(digits[name] == 0 for name in q.text.split())]
    for q in questions(FEW, "fact_choices", "test", 20):
        name, _, digit = q.fact.partition(" is ")
        assert digits[name] == int(digit)
        assert (name in q.text) == (q.level == 3)  # of two names, one; else of no use


@pytest.mark.parametrize("own", [SURE, OWN], ids=["sure", "noisy"])
def test_the_decision_follows_from_the_reasoning(own):
    for row in corpus(replace(own, direct=0.0), 400, seed=3):
        thought, decision = re.fullmatch(
            r"<think>\n(.*)\n</think>\n(\w+)", row["completion"]
        ).groups()
        if decision in VERDICTS:
            assert decision == VERDICTS["0" in thought.split(", ")]
        else:
            assert LETTERS.index(decision) == int(re.findall("[0-9]", thought)[-1])
            for a, b, c in re.findall(r"(\d)\+(\d)=(\d)", thought):
                assert (int(a) + int(b)) % 5 == int(c)


def test_the_share_without_reasoning_is_what_was_asked_for():
    rows = corpus(replace(OWN, direct=0.3), 2000, seed=0)
    direct = [
        NO_THINKING in row["prompt"] + row["completion"].split("</think>\n")[0] + "</think>\n"
        and not re.search(r"<think>\n.+\n</think>", row["completion"])
        for row in rows
    ]
    assert np.mean(direct) == pytest.approx(0.3, abs=0.04)


def test_every_completion_decides(tokenizer):
    for row in corpus(OWN, 200, seed=5):
        ids = [*tokenizer(row["completion"])["input_ids"], EOS_ID]
        options = VERDICTS if "safety" in row["prompt"] else LETTERS
        texts = [tokenizer.decode([i]) for i in ids]
        place = decision_position(texts, ids, option_ids(tokenizer, options), [EOS_ID])
        assert place == len(ids) - 2
        assert len(tokenizer(row["prompt"])["input_ids"]) < 45


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_known_accuracy_is_how_often_sampled_beliefs_are_right(dataset, temperature):
    rng = np.random.default_rng(0)
    own = replace(OWN, world=World(name_shares=(1.0,), noise_levels=(0.5,)))
    k = 5
    p = np.full(k, 0.1)
    p[0] += 0.5
    p = p ** (1 / temperature)
    p /= p.sum()  # of the true digit first, then the others
    digits: dict[str, int] = {}
    for q in questions(own, dataset, "test", 8):
        names = re.findall(r"\b[b-z][aeiou][b-z][aeiou]\b", q.text)
        for name in names:
            digits.setdefault(name, _digit(own, name))
        given = q.fact.split(" ")[0]
        right = total = 0
        for _ in range(3000):
            believed = {
                n: digits[n] if n == given else (digits[n] + rng.choice(k, p=p)) % k for n in names
            }
            if not q.choices:
                decision = VERDICTS[0 in believed.values()]
            else:
                others = [int(d) for d in re.findall("[0-9]", q.text)]
                value = (sum(believed.values()) + sum(others)) % k
                if value >= len(q.options):
                    continue
                decision = LETTERS[value]
            right += decision == q.gold
            total += 1
        assert known_accuracy(own, q, temperature) == pytest.approx(right / total, abs=0.05)


def test_nothing_is_harder_without_noise():
    for dataset in DATASETS:
        for q in questions(SURE, dataset, "test", 10):
            assert known_accuracy(SURE, q) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"direct": 1.5}, "direct must be in .0, 1."),
        ({"mixture": (1.0,)}, "mixture must have shape"),
        ({"mixture": (0, 0, 0, 0)}, "mixture is .*at least one above 0"),
        ({"world": World(modulus=7)}, "world.modulus is 7; expected 5"),
    ],
)
def test_a_world_out_of_range_is_named(values, message):
    with pytest.raises(ValueError, match=message):
        replace(OWN, **values)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sums", "test", 3), "dataset is 'sums'"),
        (("choices", "corpus", 3), "split is 'corpus'"),
        (("choices", "test", 0), "n is 0"),
        (("choices", "test", 10**6), r"choices \(test\) has \d+ questions; 1000000 were asked"),
    ],
)
def test_questions_that_are_not_there_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        questions(DecisionWorld(World(names=3)), *arguments)


def test_a_temperature_below_zero_is_refused():
    (question,) = questions(OWN, "choices", "test", 1)
    with pytest.raises(ValueError, match="temperature is -1"):
        known_accuracy(OWN, question, -1.0)


def test_a_model_of_the_microworld_gets_the_tokens_of_decisions():
    torch = pytest.importorskip("torch")
    tokenizers = [microworld.build_tokenizer(FEW.world) for _ in range(3)]
    n_known = len(tokenizers[0])
    config = microworld.model_config("qwen2", 32, 1, 1, n_known)
    models = [microworld.new_model(config, 0) for _ in range(3)]
    before = models[0].get_input_embeddings().weight.clone()
    state = torch.random.get_rng_state()
    extend(models[0], tokenizers[0], FEW, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert tokenizers[0].get_vocab() == build_tokenizer(FEW).get_vocab()
    for weights in (models[0].get_input_embeddings().weight, models[0].lm_head.weight):
        assert len(weights) == len(tokenizers[0]) > n_known
        assert weights[n_known:].std() > 0.01
    assert torch.equal(models[0].get_input_embeddings().weight[:n_known], before)
    extend(models[1], tokenizers[1], FEW, seed=1)
    assert torch.equal(models[0].lm_head.weight, models[1].lm_head.weight)
    with pytest.raises(ValueError, match=r"'\w+' is no token of the model's tokenizer"):
        extend(models[2], tokenizers[2], replace(FEW, world=World(names=13)), seed=1)


def test_a_model_whose_corpus_says_more_gets_them_too():
    # the words of another corpus are other tokens; what it knows the names for stays the same
    torch = pytest.importorskip("torch")
    more = World(name_shares=microworld.PRESETS["large"].name_shares)
    tokenizer = microworld.build_tokenizer(World())
    assert microworld.build_tokenizer(more).get_vocab() != tokenizer.get_vocab()
    config = microworld.model_config("qwen2", 32, 1, 1, len(tokenizer))
    model = microworld.new_model(config, 0)
    before = model.get_input_embeddings().weight.clone()
    extend(model, tokenizer, DecisionWorld(more), seed=1)
    assert torch.equal(model.get_input_embeddings().weight[: len(before)], before)
