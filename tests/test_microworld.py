import itertools
import json
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from corea.tasks.microworld import (
    ARCHITECTURES,
    DATASETS,
    EOS_ID,
    PAD_ID,
    PRESETS,
    SPLITS,
    World,
    build_tokenizer,
    corpus,
    model_config,
    new_model,
    questions,
    sampler_accuracy,
)
from corea.tasks.parsing import parse_completion
from corea.tasks.questions import INSTRUCTION, ROUTER_INSTRUCTION, Question
from corea.tasks.verify import verify_batch

WORLD = World()
FEW = World(names=12)  # few enough names for a short corpus to show each of them often
CHAINS = tuple(name for name in DATASETS if name != "facts")


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(WORLD)


@pytest.fixture(scope="module")
def rows():
    return corpus(WORLD, 4000, seed=1)


def operands(text):
    """What is added up, in order, read without the module; of a fact its name."""
    return re.findall(r"\b(?:[b-z][aeiou][b-z][aeiou]|[0-9])\b", text)


def evaluate(text, digits):
    return sum(digits[o] if o in digits else int(o) for o in operands(text)) % 5


def without_noise(world):
    return replace(world, name_shares=(1.0,), noise_levels=(0.0,))


def stated_truth(world):
    """The digit that a corpus without noise states for every name."""
    rows = corpus(without_noise(world), 1500, seed=0)
    digits = {}
    for row in rows:
        text = asked_in(row)
        recalled = re.split("[:,]", row["completion"])[0].strip().split("+")
        pairs = zip(operands(text), recalled, strict=True)
        stated = {o: int(digit) for o, digit in pairs if o.isalpha()}
        assert stated == stated | {n: d for n, d in digits.items() if n in stated}  # always alike
        digits |= stated
    return digits


def asked_in(row):
    """The question of a row of the corpus, without its instruction."""
    return row["prompt"].removesuffix("\n" + INSTRUCTION)


def answer_to(text, digits):
    """The right answer to a question of any dataset."""
    value = evaluate(text, digits)
    return letter(value) if asks_for_a_letter(text) else str(value)


def asked_of(text):
    """What a chain asks: its operands in any order."""
    return tuple(sorted(operands(text)))


def asks_for_a_letter(text):
    return re.search("letter", text, re.IGNORECASE) is not None


def dataset_of(text):
    """A dataset whose questions read like this one."""
    if asks_for_a_letter(text):
        return "fact_sums" if "+" in text else "facts"
    return {"W": "words", "A": "additions"}.get(text[0], "long_chains")


def letter(digit):
    return "ABCDE"[digit]


@pytest.mark.parametrize("dataset", DATASETS)
def test_questions_are_deterministic_distinct_and_begin_alike(dataset):
    first = questions(WORLD, dataset, "test", 120)
    assert first == questions(WORLD, dataset, "test", 120)
    assert first[:30] == questions(WORLD, dataset, "test", 30)
    assert len({q.text for q in first}) == len({q.question_id for q in first}) == 120
    assert {(q.dataset, q.kind) for q in first} == {(dataset, "choice")}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("dataset", CHAINS)
def test_no_chain_of_a_split_is_in_the_corpus_in_any_form(dataset, split, rows):
    seen = {asked_of(asked_in(row)) for row in rows}
    assert len(seen) > 1000
    assert not seen & {asked_of(q.text) for q in questions(WORLD, dataset, split, 500)}


@pytest.mark.parametrize("split", SPLITS)
def test_no_fact_of_a_split_is_asked_so_in_the_corpus(split, rows):
    seen = set(map(asked_in, rows))
    asked = {q.text for q in questions(WORLD, "facts", split, 150)}
    assert not seen & asked

    def names(texts):
        return {word for text in texts for word in re.findall("[a-z]{4}", text)}

    assert len(names(asked) & names(seen)) > 0.9 * len(names(asked))  # the names are known


def test_splits_share_no_question_in_words_or_another_order_either():
    for one, other in itertools.permutations(SPLITS, 2):
        for dataset in DATASETS:
            first, second = (questions(WORLD, dataset, split, 150) for split in (one, other))
            assert not {q.text for q in first} & {q.text for q in second}
        chains = {asked_of(q.text) for q in questions(WORLD, "chains", one, 600)}
        for dataset in CHAINS:
            asked = {asked_of(q.text) for q in questions(WORLD, dataset, other, 600)}
            assert not chains & asked


def test_gold_answers_are_what_a_noise_free_corpus_leads_to_and_that_is_right_throughout():
    digits = stated_truth(FEW)
    assert len(digits) == 12
    for dataset in DATASETS:
        for q in questions(FEW, dataset, "test", 5 if dataset == "facts" else 60):
            assert q.gold == answer_to(q.text, digits), q.text
    for row in corpus(without_noise(FEW), 400, seed=7):
        assert parse_completion(row["completion"]).answer == answer_to(asked_in(row), digits)


def test_long_chains_are_longer_than_any_that_is_reinforced():
    def steps(dataset):
        return {len(operands(q.text)) - 1 for q in questions(WORLD, dataset, "test", 300)}

    assert max(steps("chains")) < min(steps("long_chains"))
    assert steps("words") <= steps("chains")
    assert steps("additions") < steps("chains")


def test_level_grades_difficulty():
    for dataset in DATASETS:
        asked = questions(WORLD, dataset, "test", 300)
        by_level = [
            np.mean([sampler_accuracy(WORLD, q) for q in asked if q.level == level])
            for level in sorted({q.level for q in asked})
        ]
        assert len(by_level) > 1
        assert by_level == sorted(by_level, reverse=True)
        if dataset == "chains":
            assert len({round(sampler_accuracy(WORLD, q), 6) for q in asked}) >= 10


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("dataset", ["chains", "fact_sums", "facts"])
def test_sampler_accuracy_is_how_often_sampling_is_right(dataset, temperature):
    noise, draws = 0.6, 8_000
    world = World(names=12, name_shares=(1.0,), noise_levels=(noise,))
    digits = stated_truth(world)
    rng = np.random.default_rng(0)

    def sample(outcomes, true):
        p = np.array([noise / len(outcomes) + (1 - noise) * (o == true) for o in outcomes])
        p = p ** (1 / temperature)
        return rng.choice(outcomes, size=draws, p=p / p.sum())

    for q in questions(world, dataset, "test", 5):
        named = [n for n in digits if n in re.findall("[a-z]+", q.text)]
        if dataset == "facts":
            right = np.mean(sample(list("ABCDE"), letter(digits[named[0]])) == q.gold)
        else:
            drawn = {n: sample(range(5), digits[n]) for n in named}
            values = [{n: int(drawn[n][i]) for n in named} for i in range(draws)]
            right = np.mean([answer_to(q.text, digits) == q.gold for digits in values])
        exact = sampler_accuracy(world, q, temperature)
        assert right == pytest.approx(exact, abs=4.5 * np.sqrt(0.25 / draws))


def test_sampler_accuracy_is_the_accuracy_of_the_corpus_itself():
    digits = stated_truth(FEW)
    right, expected = [], []
    for row in corpus(FEW, 2000, seed=5):
        text = asked_in(row)
        gold = answer_to(text, digits)
        dataset = dataset_of(text)
        question = Question(dataset, "0", text, gold, "choice")
        right.append(parse_completion(row["completion"]).answer == gold)
        expected.append(sampler_accuracy(FEW, question))
    expected = np.array(expected)
    error = np.sqrt((expected * (1 - expected)).sum()) / len(expected)
    assert np.mean(right) == pytest.approx(expected.mean(), abs=4 * error)
    # and where it is graded low it is low
    hard = expected < 0.5
    assert hard.sum() > 100
    assert np.mean(np.array(right)[hard]) < np.mean(np.array(right)[~hard]) - 0.2


def test_greedy_is_the_limit_of_sampling_and_who_knows_more_names_is_never_worse():
    cleaner = replace(WORLD, name_shares=PRESETS["large"].name_shares)
    for dataset in DATASETS:
        asked = questions(WORLD, dataset, "test", 60)
        again = questions(cleaner, dataset, "test", 60)
        assert [(q.text, q.gold) for q in asked] == [(q.text, q.gold) for q in again]
        for q in asked:
            assert sampler_accuracy(WORLD, q, 0.01) == pytest.approx(
                sampler_accuracy(WORLD, q, 0.0)
            )
        less, more = (np.array([sampler_accuracy(w, q) for q in asked]) for w in (WORLD, cleaner))
        assert less.mean() < more.mean() - 0.1
        if dataset == "facts":  # by a lucky second error, a noisier chain can be likelier right
            assert (less <= more).all()


def test_completions_are_read_and_checked_like_any_other(rows):
    parsed = [parse_completion(row["completion"]) for row in rows]
    assert all(p.answer is not None for p in parsed)
    stated = [p.confidence for p in parsed if p.confidence is not None]
    assert set(stated) == {i / 10 for i in range(11)}
    assert 1 - len(stated) / len(rows) == pytest.approx(WORLD.silence, abs=0.02)
    asked = questions(WORLD, "facts", "test", 3)
    assert verify_batch([q.gold for q in asked], [q.gold for q in asked], "choice") == [True] * 3
    assert rows == corpus(WORLD, 4000, seed=1)
    assert rows[:50] != corpus(WORLD, 50, seed=2)


def test_what_is_hard_is_thought_about_at_length(rows):
    """The writer pauses where names are noisy, and never where all is sure."""
    sure = corpus(without_noise(WORLD), 500, seed=1)
    assert not any("think" in row["completion"] for row in sure)
    pauses = {names: [] for names in range(5)}
    for row in rows:
        names = sum(o.isalpha() for o in operands(asked_in(row)))
        pauses[names].append(row["completion"].count(" Let me think."))
    means = [np.mean(pauses[names]) for names in sorted(pauses)]
    assert means[0] == 0
    assert means[:3] == sorted(means[:3])
    assert min(means[2:]) > 1


def stated_and_noisy(world):
    """Stated confidence of each completion, and whether it is right."""
    digits = stated_truth(FEW)
    chains = [row for row in corpus(world, 2500, seed=3) if not asks_for_a_letter(asked_in(row))]
    chains = [row for row in chains if r"\confidence" in row["completion"]]
    parsed = [parse_completion(row["completion"]) for row in chains]
    golds = [str(evaluate(asked_in(row), digits)) for row in chains]
    right = [said.answer == gold for said, gold in zip(parsed, golds, strict=True)]
    return np.array([said.confidence for said in parsed]), np.array(right)


def test_stated_confidence_is_overconfident_and_informed_only_where_asked():
    stated, right = stated_and_noisy(FEW)
    assert stated.mean() > right.mean() + 0.1
    assert stated[right].mean() > stated[~right].mean() + 0.1
    stated, right = stated_and_noisy(replace(FEW, informed=0.0))
    assert stated[right].mean() == pytest.approx(stated[~right].mean(), abs=0.05)


def test_an_uninformed_corpus_deals_out_the_same_confidences():
    informed, dealt = (corpus(replace(FEW, informed=i), 500, seed=3) for i in (1.0, 0.0))
    confidences = [
        [parse_completion(row["completion"]).confidence for row in rows]
        for rows in (informed, dealt)
    ]
    assert confidences[0] != confidences[1]
    assert Counter(confidences[0]) == Counter(confidences[1])  # with those that state none

    def without_confidence(rows):
        return [(row["prompt"], row["completion"].split(r"\confidence")[0]) for row in rows]

    assert without_confidence(informed) == without_confidence(dealt)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("names", 0), ("names", True), ("seed", -1), ("hesitation", 1.1), ("informed", -0.1)),
        *(("pausing", 2), ("silence", float("nan"))),
        *(("mixture", (1.0,)), ("mixture", (0.0,) * 6), ("name_shares", (1.0,))),
        ("noise_levels", (0.0, 0.2, 0.4, 0.6, 0.8, 1.2)),
        ("noise_levels", (0.0, 0.2, 0.4, 0.6, 0.8, float("nan"))),
    ],
)
def test_a_world_out_of_range_is_named(field, value):
    with pytest.raises(ValueError, match=f"^{field}"):
        replace(WORLD, **{field: value})


@pytest.mark.parametrize(
    ("call", "arguments", "named"),
    [
        (partial(questions, World(names=5)), ("maths", "test", 1), "dataset"),
        (partial(questions, World(names=5)), ("chains", "corpus", 1), "split"),
        (partial(questions, World(names=5)), ("chains", "test", 0), "n is"),
        (partial(questions, World(names=5)), ("facts", "test", 10**6), "facts"),
        (model_config, ("gpt2", 64, 2, 2, 300), "architecture"),
        (model_config, ("qwen2", 65, 2, 2, 300), "hidden_size"),
        (model_config, ("qwen2", 64, 0, 2, 300), "n_layers"),
        (model_config, ("qwen2", 64, 2, 0, 300), "n_heads"),
        (model_config, ("qwen2", 64, 2, 2, 1), "vocab_size"),
    ],
)
def test_what_does_not_exist_is_named(call, arguments, named):
    with pytest.raises(ValueError, match=named):
        call(*arguments)


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_truth_of_a_foreign_question_or_temperature_is_refused(dataset):
    for text in ("", "9", "9-1x", "9/3", "9-1 ", "9-xyzq", "What is 9?"):
        with pytest.raises(ValueError, match=dataset):
            sampler_accuracy(WORLD, Question(dataset, "0", text, "8", "choice"))
    question = questions(WORLD, dataset, "test", 1)[0]
    with pytest.raises(ValueError, match="temperature"):
        sampler_accuracy(WORLD, question, -0.5)


def test_tokenizer_returns_every_text_unchanged(tokenizer, rows):
    texts = [row["prompt"] + row["completion"] for row in rows[:200]]
    texts += [q.router_prompt for q in questions(WORLD, "facts", "test", 5)]
    texts += ["naïve  Ω\n\t \\frac{1}{2}", r"\confidence{ 0.95 } and \boxed{-12}", ""]
    for text in texts:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_instructions_are_one_token_and_digits_stand_alone(tokenizer, rows):
    for instruction in (INSTRUCTION, ROUTER_INSTRUCTION):
        assert len(tokenizer(instruction)["input_ids"]) == 1
    for row in rows[:100]:
        ids = tokenizer(row["prompt"])["input_ids"]
        assert len(ids) < 50
        assert tokenizer.decode(ids[-1:]) == INSTRUCTION
        joined = ids + tokenizer(row["completion"])["input_ids"]
        assert tokenizer(row["prompt"] + row["completion"])["input_ids"] == joined
    for i in range(11):
        tokens = tokenizer.tokenize(rf" \boxed{{10}} \confidence{{{i / 10:.1f}}}")
        assert tokens[-4:] == [str(i // 10), ".", str(i % 10), "}"]
    instructions = {tokenizer(text)["input_ids"][0] for text in (INSTRUCTION, ROUTER_INSTRUCTION)}
    for token, place in tokenizer.get_vocab().items():
        assert place in instructions or len(token) == 1 or not re.search("[0-9]", token)


def test_tokenizer_is_padded_on_the_left_and_survives_saving(tokenizer, rows, tmp_path):
    batch = tokenizer(["1+2", "1+2-3"], padding=True)
    assert batch["attention_mask"][0][0] == 0
    assert batch["input_ids"][0][0] == PAD_ID == tokenizer.pad_token_id
    assert tokenizer.eos_token_id == EOS_ID
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    for name in ("padding_side", "pad_token", "eos_token"):
        assert getattr(loaded, name) == getattr(tokenizer, name)
    for row in rows[:50]:
        text = row["prompt"] + row["completion"]
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_tokenizer_is_the_same_in_another_process(tokenizer):
    code = (
        "import json; from corea.tasks.microworld import build_tokenizer; "
        "print(json.dumps(build_tokenizer().get_vocab(), sort_keys=True))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "7", "PATH": "", "OMP_NUM_THREADS": "1"},
    )
    assert json.loads(printed.stdout) == tokenizer.get_vocab()
    assert printed.stderr == ""


def test_questions_and_truth_need_no_torch():
    code = (
        "import sys; from corea.tasks.microworld import *; "
        "from corea.tasks.microworld import World, corpus, questions, sampler_accuracy; "
        "q = questions(World(), 'chains', 'test', 2)[1]; sampler_accuracy(World(), q); "
        "corpus(World(), 5, 0); "
        "sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'tokenizers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_models_are_seeded_generate_and_survive_saving(architecture, tokenizer, tmp_path):
    config = model_config(architecture, 64, 2, 2, len(tokenizer))
    assert config.model_type == architecture
    state = torch.get_rng_state()
    model, again, other = (new_model(config, seed) for seed in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    weights, same, different = (m.model.layers[0].mlp.up_proj.weight for m in (model, again, other))
    assert torch.equal(weights, same)
    assert not torch.equal(weights, different)
    assert weights.std().item() == pytest.approx(0.7 / 8, rel=0.05)

    batch = tokenizer(
        [q.prompt for q in questions(WORLD, "chains", "test", 3)], padding=True, return_tensors="pt"
    )
    out = model.generate(**batch, max_new_tokens=4, do_sample=False)
    assert out.shape[0] == 3
    model.save_pretrained(tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".bin", ".pt", ".pkl")]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.allclose(loaded(**batch).logits, model(**batch).logits, atol=1e-5)


def test_presets_are_what_they_are_for(tokenizer):
    def parameters(preset):
        config = model_config(
            "qwen2", preset.hidden_size, preset.n_layers, preset.n_heads, len(tokenizer)
        )
        return sum(weights.numel() for weights in new_model(config, 0).parameters())

    sizes = {name: parameters(preset) for name, preset in PRESETS.items()}
    assert sizes["tiny"] < sizes["small"] < sizes["large"]
    assert sizes["large"] / sizes["small"] > 3
    assert (np.cumsum(PRESETS["large"].name_shares) >= np.cumsum(WORLD.name_shares)).all()
    assert sizes["micro"] < sizes["mini"] < sizes["tiny"]
    assert sizes["small"] < sizes["medium"] < sizes["big"]
    assert sizes["big"] / sizes["micro"] > 90  # two orders of magnitude
    for name in PRESETS.keys() - {"micro"}:
        assert PRESETS[name].hidden_size // PRESETS[name].n_heads == 32
