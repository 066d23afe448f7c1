"""Confidences from different places, on the same answers."""

import numpy as np
import pandas as pd
import pytest
from fake_runs import fake_run

from corea.decisions import signals
from corea.metrics.calibration import auroc
from corea.runs import RunError, run_records


def records(n=400, *, seeds=(0,), system="RLVR-SLM"):
    """Two signals that each know a part, one that knows nothing, none of a probe."""
    parts = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        one, two = rng.normal(size=n), rng.normal(size=n)
        correct = one + two + 0.3 * rng.normal(size=n) > 0
        parts.append(
            pd.DataFrame(
                {
                    "dataset": "chains",
                    "question_id": [f"{i:04d}" for i in range(n)],
                    "sample": 0,
                    "system": system,
                    "seed": seed,
                    "correct": correct,
                    "confidence": 1 / (1 + np.exp(-one)),
                    "expected_confidence": 1 / (1 + np.exp(-two)),
                    "decision_token": rng.uniform(0.99, 1, n),
                    "average_probability": rng.uniform(0.5, 1, n),
                    "probe": np.nan,
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def test_signals_together_know_more_than_each():
    joint = signals.combine(records(seeds=(0, 1)), "chains")
    area = {
        name: auroc(rows["confidence"], rows["correct"])
        for name, rows in joint.groupby("signal", sort=False)
    }
    assert "probe" not in area
    assert area["regression on all"] > 0.95 > area["verbalized"] > 0.7
    assert area["decision token"] == pytest.approx(0.5, abs=0.1)
    assert set(signals.COMBINED) < set(area)
    assert set(joint["seed"]) == {0, 1}
    assert set(joint["of"]) == {"RLVR-SLM"}


def test_half_of_the_questions_is_judged_and_the_same_for_all():
    joint = signals.combine(records(), "chains")
    halves = joint.groupby("signal")["question_id"].agg(frozenset)
    assert len(set(halves)) == 1
    assert len(halves.iloc[0]) == 200
    assert joint["confidence"].between(0, 1).all()


def test_a_signal_that_is_mostly_missing_is_left_out_and_a_row_that_lacks_one_of_the_others():
    table = records(seeds=(0, 1))
    seldom = table["decision_token"].where((table.index % 3 == 0) | (table["seed"] == 0))
    joint = signals.combine(
        table.assign(
            decision_token=seldom, confidence=table["confidence"].where(table.index % 4 > 0)
        ),
        "chains",
    )
    assert "decision token" not in set(joint["signal"])
    kept = joint.groupby(["seed", "signal"])["question_id"].agg(frozenset)
    assert {len(questions) for questions in kept} == {150}
    assert len(set(kept)) == 1
    assert not joint["confidence"].isna().any()


def test_a_model_that_is_always_right_has_no_regression():
    joint = signals.combine(records().assign(correct=True), "chains")
    assert set(signals.COMBINED) - set(joint["signal"]) == set(signals.COMBINED[2:])


def test_records_are_joined_with_their_completions_only(tmp_path):
    run = fake_run(tmp_path / "run", system="L1-SLM", method="l1", n_questions=4)
    own = run_records([run])
    read = own[["dataset", "question_id", "sample", "answer"]].assign(prompt="p", completion="c")
    joined = signals.with_completions(run, read.sample(frac=1, random_state=0))
    assert len(joined) == len(own)
    assert set(joined["completion"]) == {"c"}
    for wrong in (read[1:], read.assign(answer="another")):
        with pytest.raises(RunError, match="its records are not of these completions"):
            signals.with_completions(run, wrong)


def test_the_decision_token_is_the_answer_in_its_box():
    torch = pytest.importorskip("torch")
    from corea.tasks import microworld

    tokenizer = microworld.build_tokenizer()
    model = microworld.new_model(microworld.model_config("qwen2", 32, 1, 1, len(tokenizer)), 0)
    samples = pd.DataFrame(
        {
            "prompt": ["3+4?", "1+1?", "2?", "0?"],
            "completion": [
                r" 3+4=2. \boxed{2} \confidence{0.9}",
                r" \boxed{4}, or rather \boxed{3}",
                " none",
                r" \boxed{2 and more}",
            ],
            "answer": ["2", "3", None, "2 and more"],
        }
    )
    found = signals.decision_token(model, tokenizer, samples, ["2", "3"], batch_size=2)
    assert np.isnan(found).tolist() == [False, False, True, True]
    for i, opening in ((0, r" 3+4=2. \boxed{"), (1, r" \boxed{4}, or rather \boxed{")):
        ids = tokenizer(samples["prompt"][i])["input_ids"]
        ids += tokenizer(opening, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            p = model(input_ids=torch.tensor([ids])).logits[0, -1].softmax(dim=-1)
        token = tokenizer.convert_tokens_to_ids(samples["answer"][i])
        assert found[i] == pytest.approx(p[token].item(), rel=1e-4)
