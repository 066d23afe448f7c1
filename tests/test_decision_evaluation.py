"""Decisions as records, and what foreign reasoning does to them."""

import numpy as np
import pandas as pd
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl", reason="making a model needs the extra `train`")

import fake_vllm  # noqa: E402
from decide_in_process import OWN  # noqa: E402

from corea.decisions.evaluation import (  # noqa: E402
    OPTIONS,
    _part,
    evaluate_decisions,
    swap_reasoning,
)
from corea.decisions.tokens import OptionError, option_ids  # noqa: E402
from corea.engines.base import Sampling  # noqa: E402
from corea.engines.evaluation import EvaluationError, read_samples  # noqa: E402
from corea.engines.loading import load_model  # noqa: E402
from corea.engines.transformers_engine import TransformersEngine  # noqa: E402
from corea.engines.vllm_engine import VLLMEngine  # noqa: E402
from corea.tasks.decision_questions import DecisionQuestion  # noqa: E402
from corea.tasks.decision_world import questions  # noqa: E402

ASKED = questions(OWN, "choices", "test", 24) + questions(OWN, "messages", "test", 6)
SAMPLING = Sampling(1.0, 24, 2, seed=0)


@pytest.fixture(scope="module")
def engine(decider):
    return TransformersEngine(*load_model(decider, device="cpu"), batch_size=32)


@pytest.fixture(scope="module")
def decided(engine, tmp_path_factory):
    """Records and samples of decisions with reasoning."""
    folder = tmp_path_factory.mktemp("decided")
    records = evaluate_decisions(
        engine, ASKED, system="SLM", sampling=SAMPLING, reasoning=True, directory=folder
    )
    return records, read_samples(folder)


def distribution(engine, text):
    ids = torch.tensor([engine.tokenizer(text)["input_ids"]])
    with torch.no_grad():
        return engine.model(input_ids=ids).logits[0, -1].float().softmax(dim=-1)


def readable(engine, samples):
    """Rows whose text is encoded as the tokens it was decoded from."""
    n = [
        len(engine.tokenizer(row["prompt"] + row["completion"])["input_ids"])
        for row in samples.to_dict("records")
    ]
    ended = samples["finished"].astype(int)  # the closing token is not in the text
    return samples[n == samples["prompt_tokens"] + samples["completion_tokens"] - ended]


def test_confidence_is_the_probability_at_the_decision(engine, decided):
    records, samples = decided
    assert len(records.table) == len(samples) == 2 * len(ASKED)
    by_name = {(q.dataset, q.question_id): q for q in ASKED}
    there = readable(engine, samples[samples["answer"].notna()])
    assert len(there) > 20
    for row in there.to_dict("records"):
        question = by_name[row["dataset"], row["question_id"]]
        p = distribution(engine, row["prompt"] + row["opening"])
        own = p[option_ids(engine.tokenizer, question.options)].numpy()
        place = question.options.index(row["answer"])
        assert row["confidence"] == pytest.approx(own[place], abs=1e-5)
        assert row["renormalised"] == pytest.approx(own[place] / own.sum(), abs=1e-5)
        assert [row[name] for name in OPTIONS[: len(own)]] == pytest.approx(own, abs=1e-5)
        assert np.isnan([row[name] for name in OPTIONS[len(own) :]]).all()
        assert row["completion"].startswith(row["opening"] + row["answer"])
        assert row["correct"] == (row["answer"] == question.gold)


def test_decisions_are_greedy_though_reasoning_is_not(engine, decided):
    _, samples = decided
    marked = readable(engine, samples[samples["opening"].str.endswith("</think>\n")])
    assert len(marked) > 20
    for row in marked.to_dict("records"):
        p = distribution(engine, row["prompt"] + row["opening"])
        assert row["confidence"] == pytest.approx(p.max().item(), abs=1e-5)
    texts = samples.groupby("question_id")["completion"].nunique()
    assert (texts > 1).any()


@pytest.mark.parametrize("reasoning", [True, False])
def test_vllm_decides_as_transformers_does(engine, decider, monkeypatch, tmp_path, reasoning):
    fake_vllm.install(monkeypatch, engine.model)
    monkeypatch.setattr("corea.engines.vllm_engine.importlib.util.find_spec", lambda name: name)
    greedy, found, swapped = Sampling(0.0, 24), [], []
    for deciding in (engine, VLLMEngine(decider)):
        folder = tmp_path / type(deciding).__name__
        asked = {"system": "SLM", "sampling": greedy, "reasoning": reasoning}
        evaluate_decisions(deciding, ASKED[20:], **asked, directory=folder)
        found.append(read_samples(folder))
        among(deciding, folder / "options", ASKED[20:], reasoning=reasoning, sampling=greedy)
        found[-1] = pd.concat([found[-1], read_samples(folder / "options")], ignore_index=True)
        if reasoning:
            swapped.append(
                swap_reasoning(deciding, ASKED[20:], read_samples(folder), shares=[0.5, 1.0])
            )
    pd.testing.assert_frame_equal(*found, atol=1e-5)
    assert found[0]["answer"].notna().any()
    if reasoning:
        pd.testing.assert_frame_equal(*swapped, atol=1e-5)


def test_without_reasoning_the_likeliest_token_comes_first(engine, tmp_path):
    evaluate_decisions(
        engine, ASKED[:8], system="SLM", sampling=SAMPLING, reasoning=False, directory=tmp_path
    )
    samples = read_samples(tmp_path)
    for row in samples.to_dict("records"):
        assert row["prompt"].endswith("<think>\n</think>\n")
        first = distribution(engine, row["prompt"]).argmax()
        assert row["completion"].startswith(engine.tokenizer.decode([int(first)]))


def test_what_is_cut_before_it_decides_is_wrong_and_has_no_confidence(engine, tmp_path):
    records = evaluate_decisions(
        engine,
        ASKED[:4],
        system="SLM",
        sampling=Sampling(1.0, 3),
        reasoning=True,
        directory=tmp_path,
    )
    table = records.table
    assert not table["correct"].any()
    assert table["confidence"].isna().all()
    assert table["answer"].isna().all()
    assert records.notes == ("4 completion(s) have no valid decision and count as wrong",)


def test_an_interrupted_evaluation_asks_only_for_what_is_missing(engine, tmp_path):
    def run(directory, questions=ASKED[:6], **settings):
        arguments = {"system": "SLM", "sampling": SAMPLING, "reasoning": True, "part_size": 2}
        evaluate_decisions(engine, questions, directory=directory, **arguments | settings)
        return read_samples(directory)

    whole = run(tmp_path)
    stamps = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("part-*")}
    lost = tmp_path / "part-00001"
    for path in lost.iterdir():
        path.unlink()
    lost.rmdir()
    pd.testing.assert_frame_equal(run(tmp_path), whole)
    changed = [n for n, s in stamps.items() if (tmp_path / n).stat().st_mtime_ns != s]
    assert changed == ["part-00001"]
    with pytest.raises(EvaluationError, match="reasoning is True, not False"):
        run(tmp_path, reasoning=False)


# --- among the options ------------------------------------------------------------------------


def among(engine, folder, questions=ASKED, *, reasoning, sampling=SAMPLING):
    records = evaluate_decisions(
        engine,
        questions,
        system="SLM",
        sampling=sampling,
        reasoning=reasoning,
        directory=folder,
        decisions="options",
    )
    return records, read_samples(folder)


def holds_the_likeliest_option(engine, row, question, text):
    p = distribution(engine, text)[option_ids(engine.tokenizer, question.options)].numpy()
    assert row["answer"] == question.options[int(p.argmax())]
    assert row["confidence"] == row["renormalised"] == pytest.approx(p.max() / p.sum(), abs=1e-5)
    assert [row[name] for name in OPTIONS[: len(p)]] == pytest.approx(p, abs=1e-5)
    assert row["correct"] == (row["answer"] == question.gold)


def test_among_the_options_nothing_is_written_without_reasoning(engine, tmp_path, monkeypatch):
    def write(*_, **__):
        raise AssertionError("a completion was drawn")

    monkeypatch.setattr(TransformersEngine, "generate", write)
    records, samples = among(engine, tmp_path, reasoning=False)
    assert len(samples) == 2 * len(ASKED)
    assert records.notes == ()
    by_name = {(q.dataset, q.question_id): q for q in ASKED}
    for row in samples.to_dict("records"):
        question = by_name[row["dataset"], row["question_id"]]
        assert (row["opening"], row["completion"], row["completion_tokens"]) == ("", "", 1)
        assert row["prompt"].endswith("<think>\n</think>\n")
        holds_the_likeliest_option(engine, row, question, row["prompt"])
    again = samples.groupby(["dataset", "question_id"])["confidence"].nunique()
    assert (again == 1).all()


@pytest.mark.parametrize("longest", [3, 24])
def test_among_the_options_reasoning_that_is_not_closed_is_closed(engine, tmp_path, longest):
    sampling = Sampling(1.0, longest, 2)
    records, samples = among(engine, tmp_path, reasoning=True, sampling=sampling)
    by_name = {(q.dataset, q.question_id): q for q in ASKED}
    closed = 0
    for row in samples.to_dict("records"):
        written, tag, _ = row["completion"].partition("</think>")
        assert row["opening"] == written.rstrip() + "\n</think>\n"
        closed += not tag
        question = by_name[row["dataset"], row["question_id"]]
        holds_the_likeliest_option(engine, row, question, row["prompt"] + row["opening"])
    note = f"{closed} completion(s) did not close their reasoning and were decided behind it"
    assert records.notes == ((note,) if closed else ())
    assert closed > len(samples) / 2 if longest == 3 else closed < len(samples) / 2


def test_among_the_options_it_is_decided_as_greedily_where_that_is_valid(engine, tmp_path):
    greedy = Sampling(0.0, 24)
    _, options = among(engine, tmp_path / "options", reasoning=True, sampling=greedy)
    evaluate_decisions(
        engine, ASKED, system="SLM", sampling=greedy, reasoning=True, directory=tmp_path / "greedy"
    )
    both = options.merge(read_samples(tmp_path / "greedy"), on=["dataset", "question_id"])
    ours = both["opening_x"] == both["opening_y"]
    assert ours.sum() > 10
    assert (both["answer_x"] == both["answer_y"])[ours].all()
    assert both["p_1_x"][ours].to_numpy() == pytest.approx(both["p_1_y"][ours], abs=1e-5)


def test_another_way_to_decide_is_another_request(engine, tmp_path):
    among(engine, tmp_path, ASKED[:2], reasoning=True)
    with pytest.raises(EvaluationError, match="decisions is 'options', not 'greedy'"):
        evaluate_decisions(
            engine, ASKED[:2], system="SLM", sampling=SAMPLING, reasoning=True, directory=tmp_path
        )
    with pytest.raises(ValueError, match="decisions is 'likely'; expected one of 'greedy'"):
        evaluate_decisions(
            engine, ASKED[:2], system="SLM", sampling=SAMPLING, reasoning=True,
            directory=tmp_path, decisions="likely",
        )  # fmt: skip


# --- foreign reasoning ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def swapped(engine, decided):
    return swap_reasoning(engine, ASKED, decided[1], shares=(0.0, 0.5, 1.0), seed=1)


def test_donors_are_of_the_same_dataset_and_decided_otherwise(decided, swapped):
    first = decided[1].query("sample == 0").set_index(["dataset", "question_id"])
    assert set(swapped["share"]) == {0.0, 0.5, 1.0}
    for row in swapped.to_dict("records"):
        own = first.loc[(row["dataset"], row["question_id"])]
        donor = first.loc[(row["dataset"], row["donor"])]
        assert row["own"] == own["answer"] != donor["answer"] == row["foreign"]
        assert row["own_confidence"] == own["confidence"]
        assert row["flipped"] == (row["answer"] == row["foreign"])
    again = swapped.groupby(["dataset", "question_id"])["donor"].nunique()
    assert (again == 1).all()  # the same for every share


def test_whole_foreign_reasoning_is_followed_by_the_likeliest_token(engine, decided, swapped):
    first = decided[1].query("sample == 0").set_index(["dataset", "question_id"])
    by_name = {(q.dataset, q.question_id): q for q in ASKED}
    for row in swapped[swapped["share"] == 1].to_dict("records"):
        question = by_name[row["dataset"], row["question_id"]]
        reasoning = first.loc[(row["dataset"], row["donor"]), "opening"]
        p = distribution(engine, question.prompt(reasoning=True) + reasoning)
        likeliest = engine.tokenizer.decode([int(p.argmax())])
        if likeliest in question.options:
            assert row["answer"] == likeliest
            assert row["confidence"] == pytest.approx(p.max().item(), abs=1e-5)
        else:
            assert pd.isna(row["answer"])


def test_no_foreign_reasoning_leaves_the_greedy_decision(engine, decided, tmp_path):
    greedy = Sampling(0.0, 24)
    evaluate_decisions(
        engine, ASKED, system="SLM", sampling=greedy, reasoning=True, directory=tmp_path
    )
    own = read_samples(tmp_path)
    none = swap_reasoning(engine, ASKED, own, shares=(0.0,), max_completion_tokens=24)
    assert len(none) > 10
    assert (none["answer"] == none["own"]).all()
    assert none["confidence"].to_numpy() == pytest.approx(none["own_confidence"], abs=1e-5)


def test_half_of_the_reasoning_is_half_of_its_tokens(engine, decided, monkeypatch):
    seen = []
    generate = TransformersEngine.generate

    def spy(self, prompts, *arguments, **named):
        seen.extend(prompts)
        return generate(self, prompts, *arguments, **named)

    monkeypatch.setattr(TransformersEngine, "generate", spy)
    found = swap_reasoning(engine, ASKED, decided[1], shares=(0.5,))
    first = decided[1].query("sample == 0").set_index(["dataset", "question_id"])
    checked = 0
    for row, prompt in zip(found.to_dict("records"), seen, strict=True):
        donated = first.loc[(row["dataset"], row["donor"]), "opening"]
        whole = donated.startswith("<think>\n") and donated.endswith("\n</think>\n")
        if not whole or "\ufffd" in donated:  # no reasoning, or half a letter
            continue
        checked += 1
        thought = donated.partition("\n</think>")[0].removeprefix("<think>\n")
        n = len(engine.tokenizer(thought)["input_ids"])
        begun = prompt.rpartition("<think>\n")[2]
        assert thought.startswith(begun)
        assert len(engine.tokenizer(begun)["input_ids"]) == round(n / 2)
    assert checked > 5


@pytest.mark.parametrize("opening", ["<think>\n{}\n</think>\n", "<think> {} </think> \n"])
def test_half_of_the_reasoning_is_found_in_any_spacing(engine, opening):
    half = _part(engine, opening.format("3+4: 3+4=2."), 0.5)
    assert half == opening.partition("{}")[0] + "3+4: 3"  # 5 of 10 tokens
    assert _part(engine, opening.format("3+4: 3+4=2."), 0.0) == ""
    assert _part(engine, "A", 0.5) == ""


# --- bad input --------------------------------------------------------------------------------


def test_bad_input_is_named(engine, decided, tmp_path):
    common = {"system": "SLM", "sampling": SAMPLING, "reasoning": True, "directory": tmp_path}
    with pytest.raises(ValueError, match="no questions; expected at least one"):
        evaluate_decisions(engine, [], **common)
    with pytest.raises(
        ValueError, match=r"questions\[1\] and questions\[0\] are both .*test-00000"
    ):
        evaluate_decisions(engine, [ASKED[0], ASKED[0]], **common)
    with pytest.raises(ValueError, match=r"shares has 1.5; expected numbers in \[0, 1\]"):
        swap_reasoning(engine, ASKED, decided[1], shares=(1.5,))
    with pytest.raises(ValueError, match="was decided, but is none of the questions"):
        swap_reasoning(engine, ASKED[:1], decided[1])


def test_options_that_are_several_tokens_are_refused_before_anything_is_asked(
    engine, tmp_path, monkeypatch
):
    monkeypatch.setattr(DecisionQuestion, "options", property(lambda _: ("Alpha", "Beta")))
    with pytest.raises(OptionError, match="option 'Alpha' is .* tokens; expected one"):
        evaluate_decisions(
            engine,
            ASKED[:2],
            system="SLM",
            sampling=SAMPLING,
            reasoning=True,
            directory=tmp_path,
        )
    assert not list(tmp_path.iterdir())
