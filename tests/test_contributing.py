"""The examples of CONTRIBUTING.md do what it says."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from corea import confidence
from corea.book import prose
from corea.rlcc import optimal_reports, rewards
from corea.tasks import papers

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text("utf-8")


def blocks(heading):
    """Code of a section, block by block."""
    section = TEXT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return [code for _, code in re.findall(r"```(\w+)\n(.*?)```", section, re.DOTALL)]


def entry(code, namespace):
    """The key and value of a block that is an entry of a dictionary."""
    ((key, value),) = eval("{" + code + "}", namespace).items()
    return key, value


@pytest.fixture
def spherical(monkeypatch):
    define, enter = blocks("A reward")
    namespace = dict(vars(rewards))
    exec(define, namespace)
    name, reward = entry(enter, namespace)
    known = {**rewards.CONFIDENCE_REWARDS, name: reward}
    monkeypatch.setattr(rewards, "CONFIDENCE_REWARDS", known)
    return name


def test_the_reward_pays_best_for_the_truth(spherical):
    grid = np.linspace(0, 1, 101)
    for p in (0.1, 0.35, 0.8):
        earned = [
            np.average(
                rewards.confidence_reward(spherical, [c, c], [True, False], group_size=2),
                weights=[p, 1 - p],
            )
            for c in grid
        ]
        assert grid[np.argmax(earned)] == pytest.approx(p, abs=0.011)
    worst = rewards.confidence_reward(spherical, [np.nan, 2.0], [True, False], group_size=2)
    assert worst.tolist() == [rewards.WORST] * 2


def test_the_chapter_on_rewards_computes_what_it_asks_for(spherical):
    report = optimal_reports.optimal_report(spherical, [0.3, 0.6], 4)
    assert report.low == pytest.approx([0.3, 0.6])
    assert report.high == pytest.approx([0.3, 0.6])


def test_the_signal_becomes_a_confidence():
    define, use = blocks("A confidence signal")
    namespace = dict(vars(confidence))
    exec(define, namespace)
    least = namespace["least_probability"]
    assert least(np.log([0.5, 0.25, 1.0])) == pytest.approx(0.25)
    assert np.isnan(least([]))
    namespace["table"] = pd.DataFrame(
        {
            "dataset": "d", "question_id": ["1"], "system": "SLM", "sample": 0,
            "correct": [True], "confidence": [1.0], "least_probability": [least(np.log([0.5]))],
        }
    )  # fmt: skip
    exec(use, namespace)
    assert namespace["table"]["confidence"].tolist() == [pytest.approx(0.5)]


def test_the_dataset_is_read_from_a_folder(tmp_path, monkeypatch):
    define, enter = blocks("A dataset")
    namespace = dict(vars(papers))
    exec(define, namespace)
    name, source = entry(enter, namespace)
    monkeypatch.setattr(papers, "DATASETS", {**papers.DATASETS, name: source})
    (tmp_path / name).mkdir()
    file = tmp_path / name / "test.jsonl"
    file.write_text(json.dumps({"riddle": "What is 1 + 1?", "solution": "2"}) + "\n", "utf-8")
    (question,) = papers.load_questions(name, "test", folder=tmp_path)
    assert (question.dataset, question.text, question.gold) == (name, "What is 1 + 1?", "2")
    file.write_text(json.dumps({"riddle": "What?"}) + "\n", "utf-8")
    with pytest.raises(papers.TaskError, match=r"test\.jsonl.*1.*solution"):
        papers.load_questions(name, "test", folder=tmp_path)


def test_the_chapter_says_its_number():
    code, markdown = blocks("A chapter")
    namespace = {}
    exec(code, namespace)
    assert code.rstrip().endswith("\nn")
    values = prose.said({"outputs": [{"data": namespace["n"]._repr_mimebundle_()}]})
    assert re.fullmatch(r"RLCR's .* is 0\.\d{3}\.", prose.fill(markdown.strip(), values))
