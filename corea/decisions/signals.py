r"""Confidences from different places, on the same answers.

1. Paper B's confidence is defined where one token decides. On paper A's answers it is taken at the
   answer's place in ``\boxed{}``, where the answer is one token: its probability there, in the full
   vocabulary and at temperature 1.
2. To compare signals of different scales, each is mapped by isotonic regression to how often it
   was right on half of the questions; everything said of them is of the other half.
3. Disagreement is the standard deviation of the mapped signals. Whether it says something of its
   own is tested by a logistic regression with and without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from corea.decisions.recalibration import split_questions
from corea.decisions.tokens import decision_confidence
from corea.runs import RunError, run_records
from corea.tasks.parsing import answer_opening

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Floats = NDArray[np.float64]

SIGNALS = {
    "verbalized": "confidence",
    "expected verbalized": "expected_confidence",
    "decision token": "decision_token",
    "average probability": "average_probability",
    "probe": "probe",
}
"""Name of each signal to its column in the records."""

COMBINED = (
    "mean of all",
    "less disagreement",
    "regression on all",
    "regression, with disagreement",
)
"""What :func:`combine` makes of them."""


def decision_token(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    samples: pd.DataFrame,
    options: Sequence[str],
    *,
    batch_size: int = 64,
) -> Floats:
    r"""Probability of each answer at its place in ``\boxed{}``.

    Source: paper B, section 2; choice 1 of this module.
    """
    from corea.engines.prompts import chat_prompt
    from corea.engines.transformers_engine import candidate_logprobs

    openings = [answer_opening(text) for text in samples["completion"]]
    answers = samples["answer"].tolist()
    boxed = [
        i
        for i, (opening, answer) in enumerate(zip(openings, answers, strict=True))
        if opening is not None and answer in options
    ]
    found = np.full(len(samples), np.nan)
    if boxed:
        logprobs = candidate_logprobs(
            model,
            tokenizer,
            [chat_prompt(tokenizer, samples["prompt"].iloc[i]) for i in boxed],
            [openings[i] or "" for i in boxed],
            options,
            batch_size=batch_size * len(options),
        )
        decided = [list(options).index(answers[i]) for i in boxed]
        found[boxed], _ = decision_confidence(logprobs, decided)
    return found


def with_completions(run: str | Path, samples: pd.DataFrame) -> pd.DataFrame:
    """The records of a run with ``prompt`` and ``completion``, as read from the same evaluation."""
    keys = ["dataset", "question_id", "sample"]
    records = run_records([run])
    read = samples[[*keys, "prompt", "completion", "answer"]]
    joined = records.merge(read, on=keys, suffixes=("", "_read"), validate="1:1")
    same = joined["answer"].fillna("").equals(joined["answer_read"].fillna(""))
    if len(joined) != len(records) or not same:
        raise RunError(f"{run}: its records are not of these completions; expected the same")
    return joined.drop(columns="answer_read")


def combine(records: pd.DataFrame, dataset: str, *, seed: int = 0) -> pd.DataFrame:
    """Signals on one scale, and what can be made of several, on half of a dataset's questions.

    A column that more than half of a system's rows lack, with any seed, is left out for it, and
    then a row that lacks a signal. The regressions are left out for a system and seed that is
    always right or always wrong on the half that is fitted to.

    Source: choices 2 and 3 of this module.

    Returns:
        The other half, once per signal and per name in :data:`COMBINED`: ``dataset, question_id,
        sample, correct, seed, of`` (the system), ``signal``, ``system`` (both) and ``confidence``.
    """
    parts = []
    own = records[records["dataset"] == dataset]
    stated = own[[*SIGNALS.values()]].notna().groupby([own["system"], own["seed"]]).mean()
    usual = stated.groupby("system").min() >= 0.5
    for (system, run_seed), rows in own.groupby(["system", "seed"], sort=False):
        names = [name for name, column in SIGNALS.items() if usual.loc[str(system)][column]]
        columns = [SIGNALS[name] for name in names]
        rows = rows.dropna(subset=columns).reset_index(drop=True)
        fit, rest = split_questions(rows, dataset, rows["question_id"].nunique() // 2, seed=seed)
        scores = dict(zip(names, _mapped(fit, rest, columns).T, strict=True))
        scores |= _combined(
            _mapped(fit, fit, columns), fit["correct"], np.array([*scores.values()]).T
        )
        kept = rest[["dataset", "question_id", "sample", "correct"]]
        parts += [
            kept.assign(
                seed=int(str(run_seed)),
                of=str(system),
                signal=name,
                system=f"{system}, {name}",
                confidence=score,
            )
            for name, score in scores.items()
        ]
    return pd.concat(parts, ignore_index=True)


def _mapped(fit: pd.DataFrame, rows: pd.DataFrame, columns: Sequence[str]) -> Floats:
    """Signals as the shares of right answers that they stood for, (n, signals)."""
    from sklearn.isotonic import IsotonicRegression

    return np.column_stack(
        [
            IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip")
            .fit(fit[column], fit["correct"])
            .predict(rows[column])
            for column in columns
        ]
    )


def _combined(seen: Floats, correct: pd.Series[bool], new: Floats) -> dict[str, Floats]:
    from sklearn.linear_model import LogisticRegression

    apart, apart_new = (values.std(axis=1, keepdims=True) for values in (seen, new))
    found = {COMBINED[0]: new.mean(axis=1), COMBINED[1]: 1 - apart_new[:, 0]}
    if correct.nunique() < 2:
        return found
    alone = LogisticRegression(max_iter=1000).fit(seen, correct)
    both = LogisticRegression(max_iter=1000).fit(np.hstack([seen, apart]), correct)
    return found | {
        COMBINED[2]: alone.predict_proba(new)[:, 1],
        COMBINED[3]: both.predict_proba(np.hstack([new, apart_new]))[:, 1],
    }
