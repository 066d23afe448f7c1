"""What a service answered: the log it appends to, and records made of it.

1. The log has a line for each system that was asked a question: the columns of
   :mod:`corea.records` but for ``correct``, which nobody knows while a service runs and which is
   never made up. The lines of one question are written by one system call before the answer is
   given, so none is lost or doubled when the service is killed; a line that was cut then belongs to
   a question that was not answered, and is taken off when the log is opened again. (What a failing
   machine had not yet written to its disk is lost.)
2. Prompts, completions and answers are kept only if asked for.
3. ``audit`` says that the question was drawn, before it was asked, to be looked at whatever
   happens to it: then the large model is asked too where the small one answered, and ``agrees``
   says whether their answers are equal. Only drawn questions are a fair sample.
4. :func:`audited` makes records: from verdicts, or, without any, of what was drawn, where "right"
   means "as the large model says". :func:`losses` is what a drift alarm takes in.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pandas as pd

from corea.records import Records, RecordsError, json_object, quoted, records_from_columns
from corea.store import locked

_KEY = ["question_id", "system"]
_COLUMNS = ("dataset", *_KEY, "sample", "confidence", "prompt_tokens", "completion_tokens")
_MORE = ("outcome", "deferred", "audit", "agrees", "error")

_log = logging.getLogger(__name__)


class AnswerLog:
    """The log of one service, a file of JSON lines; another process is kept from it."""

    def __init__(self, path: str | Path) -> None:
        """Open it, or make it; a line that was cut is taken off.

        Raises:
            BlockingIOError: If another process has it open.
            ValueError: If its name does not end in ``.jsonl``.
        """
        self.path = Path(path)
        if self.path.suffix != ".jsonl":
            raise ValueError(f"{self.path.name}: the log is a file of JSON lines, named .jsonl")
        self._open = ExitStack()
        self._open.enter_context(locked(self.path.with_name(self.path.name + ".lock")))
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self._open.callback(os.close, self._file)
        self._end = self._whole()

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the rows of one question, all or none; an OSError if they cannot be."""
        text = "".join(json.dumps(dict(row), allow_nan=False) + "\n" for row in rows).encode()
        try:
            written = os.write(self._file, text)
            if written < len(text):
                raise OSError(f"{self.path.name}: only {written} of {len(text)} bytes were written")
        except OSError:
            os.ftruncate(self._file, self._end)
            raise
        self._end += len(text)

    def close(self) -> None:
        """Leave it to others, with all of it on the disk."""
        os.fsync(self._file)
        self._open.close()

    def _whole(self) -> int:
        """Take off what stands behind the last line's end; the length of the rest."""
        end = size = os.lseek(self._file, 0, os.SEEK_END)
        while end and os.pread(self._file, 1, end - 1) != b"\n":
            start = max(0, end - 4096)
            end = start + os.pread(self._file, end - start, start).rfind(b"\n") + 1
        if end < size:
            _log.warning("%s: took off %d bytes of a line that was cut", self.path.name, size - end)
            os.ftruncate(self._file, end)
        return end


def read_log(path: str | Path) -> pd.DataFrame:
    """The lines of a log, in their order; one that is being written is left out.

    Raises:
        RecordsError: Naming the first line that is none of a log.
    """
    path = Path(path)
    text = path.read_text("utf-8")
    rows = []
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        try:
            row = json_object(line)
        except ValueError as error:
            raise RecordsError(path.name, f"line {number}: {error}") from None
        if lacking := [name for name in (*_COLUMNS, *_MORE) if name not in row]:
            raise RecordsError(
                path.name, f"line {number}: no field {', '.join(lacking)}; expected a service's log"
            )
        rows.append(row)
    if not rows:
        raise RecordsError(path.name, "no lines: nothing was answered yet")
    return pd.DataFrame(rows)


def audited(log: pd.DataFrame, verdicts: pd.DataFrame | None = None) -> Records:
    """Records of the questions of which it is known who was right.

    Args:
        log: From :func:`read_log`.
        verdicts: ``question_id, system, correct`` (a boolean or 0/1) of answers that somebody
            judged. Without them the drawn questions that both models answered are taken, the large
            model being right and the small one where it agrees.

    Raises:
        RecordsError: If there is none, or a verdict is of an answer that is not in the log, or
            there are two of one answer.

    Example:
        >>> row = {"dataset": "served", "question_id": "q1", "sample": 0, "confidence": 0.9,
        ...     "prompt_tokens": 9, "completion_tokens": 5, "outcome": "small",
        ...     "deferred": False, "audit": True, "error": ""}
        >>> log = pd.DataFrame([{**row, "system": "s", "agrees": None},
        ...     {**row, "system": "l", "confidence": None, "agrees": False}])
        >>> audited(log).table[["system", "correct"]].to_dict("list")
        {'system': ['s', 'l'], 'correct': [False, True]}
    """
    rows = log[log["error"] == ""]
    if verdicts is None:
        rows = rows[rows["audit"].astype(bool)]
        agrees = rows.dropna(subset="agrees").set_index("question_id")["agrees"]
        large = rows["agrees"].notna()
        judged = rows["question_id"].isin(agrees.index)
        correct = rows["question_id"].map(agrees).where(~large, True)
        note = "correct means: as the large model says; no verdicts were given"
        rows = rows.assign(correct=correct)[judged]
    else:
        if lacking := [name for name in (*_KEY, "correct") if name not in verdicts]:
            raise RecordsError("verdicts", f"missing column(s) {', '.join(lacking)}")
        known = verdicts[_KEY].astype(str).merge(rows[_KEY], on=_KEY, how="left", indicator=True)
        wrong = known[(known["_merge"] == "left_only") | known.duplicated(_KEY)]
        if len(wrong):
            first = wrong.iloc[0]
            raise RecordsError(
                "verdicts",
                f"row {wrong.index[0] + 1}: question_id={quoted(first['question_id'])}, "
                f"system={quoted(first['system'])} is no answer of the log, or was there before",
            )
        rows = rows.merge(verdicts[[*_KEY, "correct"]].astype(dict.fromkeys(_KEY, str)), on=_KEY)
        note = f"{len(rows):,} of {len(log):,} answers have a verdict"
    if rows.empty:
        raise RecordsError("log", "no answer of which it is known whether it was right")
    cells = rows.astype(object).where(rows.notna(), None)
    columns = {str(name): cells[name].tolist() for name in cells if name != "error"}
    return records_from_columns(columns, source="log", notes=[note])


def losses(log: pd.DataFrame, verdicts: pd.DataFrame | None = None) -> list[float]:
    """What the cascade lost on each drawn question, in their order, for a drift alarm.

    0 where the large model answered. Where the small one did: whether the answers differ; or, with
    verdicts of both, whether the large model was right less whether the small one was. Questions
    that are not known, or that were answered by the small model for want of the large, are left
    out.
    """
    drawn = log[log["audit"].astype(bool) & (log["error"] == "")]
    deferred = drawn[drawn["outcome"] == "large"]["question_id"].unique()
    found = dict.fromkeys(deferred, 0.0)
    kept = drawn[drawn["outcome"].isin(["small", "audit"])]
    if verdicts is None:
        asked = kept.dropna(subset="agrees")
        found |= dict(zip(asked["question_id"], 1.0 - asked["agrees"].astype(float), strict=True))
    elif len(kept):
        judged = audited(log, verdicts).table
        right = judged.pivot(index="question_id", columns="system", values="correct").astype(float)
        systems = {outcome: rows["system"].iloc[0] for outcome, rows in kept.groupby("outcome")}
        if len(systems) == 2 and set(systems.values()) <= set(right):
            loss = (right[systems["audit"]] - right[systems["small"]]).dropna()
            found |= loss[loss.index.isin(kept["question_id"])].to_dict()
    order = drawn.drop_duplicates("question_id")["question_id"]
    return [found[name] for name in order if name in found]
