"""The threshold card: a threshold, what it promises, what it was seen to do, and how it is used.

A card is one JSON file that says all that is needed to apply a threshold to other questions, and
all that a reader needs to doubt it. Cards from outside are read within limits and checked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from corea.confidence import with_signal
from corea.metrics.cascade import defers
from corea.records import json_object, quoted, quoted_names
from corea.store import write_atomically
from corea.thresholds.recalibration import Recalibration

VERSION: Literal[1] = 1
MAX_BYTES = 2**20

Share = Annotated[float, Field(ge=0, le=1)]


class CardError(ValueError):
    """A card that cannot be read, or does not fit what it is applied to."""


class _Strict(BaseModel):
    # JSON has no infinity, so a bound that there is none of is left out
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Estimate(_Strict):
    """A value on the calibration questions and its 95 % interval."""

    estimate: float
    low: float
    high: float


class Guarantee(_Strict):
    """A promise (:class:`corea.thresholds.certify.Promise`) and its words."""

    kind: Literal["within", "at_least", "disagreement", "budget"]
    level: float
    delta: Share
    words: str


class Tested(_Strict):
    """One threshold: the share of questions that it keeps, their loss and its upper bound.

    ``risk`` is the mean loss over all ``questions``, ``bound`` holds with probability 1 - delta at
    this threshold by itself, and ``certified`` says that it and all that were tested before pass.
    """

    threshold: float
    kept: Share
    risk: float
    questions: int
    bound: Share
    certified: bool


class Card(_Strict):
    """A threshold and its promise; see :func:`corea.thresholds.certify.certify`.

    Attributes:
        version: Of this layout.
        small: System that answers first.
        large: System that is deferred to.
        signal: Column of the records that the confidence is read from.
        threshold: Defer where the confidence is below it or missing; None if none is certified.
        refusal: Why there is none.
        guarantee: The promise.
        expected: Accuracy, cost and deferral on the calibration questions, which also chose the
            threshold; costs in ``cost_unit``.
        cost_unit: What a cost is counted in.
        prices: ``size_ratio`` and ``output_price`` that the costs were counted with.
        questions: How many calibrated it.
        smallest_questions: Fewest that could certify the promise, were nothing lost.
        least_deferral: Least share to defer, whatever the confidence; None for a budget.
        datasets: Questions by dataset: the promise is about this mix.
        table: The thresholds tested, a choice of them.
        recalibration: From the small system's confidence to its probability of being right, fitted
            to the same questions; None where nothing could be fitted.
        provenance: Where the questions came from.
    """

    version: Literal[1] = VERSION
    small: str
    large: str
    signal: str = "confidence"
    threshold: Annotated[float, Field(ge=0, le=1.1)] | None
    refusal: str | None = None
    guarantee: Guarantee
    expected: dict[str, Estimate]
    cost_unit: str = ""
    prices: dict[Literal["size_ratio", "output_price"], Annotated[float, Field(gt=0)]] = {}
    questions: Annotated[int, Field(ge=1)]
    smallest_questions: int
    least_deferral: Share | None
    datasets: dict[str, int]
    table: list[Tested]
    recalibration: Recalibration | None = None
    provenance: dict[str, str] = {}

    def save(self, path: str | Path) -> None:
        """Write the card as JSON, all or nothing."""
        write_atomically(Path(path), self.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Card:
        """Read a card.

        Raises:
            CardError: If the file is none, or of another version; each wrong field is named.
        """
        path = Path(path)
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise CardError(f"{path.name}: more than {MAX_BYTES:,} bytes; expected a card")
        try:
            found = json_object(data.decode())
        except ValueError as error:
            raise CardError(
                f"{path.name}: {error}; expected a card that was written by fit"
            ) from None
        if (version := found.get("version")) != VERSION:
            raise CardError(
                f"{path.name}, field version: found {quoted(version)}, expected {VERSION}; "
                "make the card again with this version of corea"
            )
        try:
            return cls.model_validate(found)
        except ValidationError as error:
            problems = "; ".join(
                f"field {'.'.join(map(str, one['loc']))}: {one['msg']}"
                for one in error.errors(include_url=False)[:10]
            )
            raise CardError(f"{path.name}: {problems}") from None

    def usable(self) -> float:
        """The threshold.

        Raises:
            CardError: If none was certified, with the reason.
        """
        if self.threshold is None:
            raise CardError(f"the card certifies no threshold: {self.refusal}")
        return self.threshold

    def route(self, table: pd.DataFrame) -> pd.DataFrame:
        """Which records of the small model go to the large one, in columns deferred and reason.

        Where the card has a recalibration, ``probability`` is what the confidence comes to.

        Args:
            table: Records; only those of the card's small system are routed, and others are refused
                unless they are the large system's.

        Raises:
            CardError: If the card has no threshold, its small system or its signal has no records,
                or there are systems that it is not about.

        Example:
            >>> facts = {"threshold": 0.9, "questions": 10, "expected": {}, "datasets": {"d": 10},
            ...     "smallest_questions": 5, "least_deferral": 0.0, "table": [],
            ...     "guarantee": {"kind": "within", "level": 0.02, "delta": 0.05, "words": "..."}}
            >>> card = Card(small="s", large="l", **facts)
            >>> rows = pd.DataFrame({"dataset": "d", "question_id": ["1", "2"], "system": "s",
            ...     "sample": 0, "correct": True, "confidence": [0.95, None]})
            >>> card.route(rows)[["deferred", "reason"]].to_dict("list")
            {'deferred': [False, True], 'reason': ['0.95 is at least 0.9', 'no confidence']}
        """
        threshold = self.usable()
        systems = list(table["system"].unique())
        strangers = [name for name in systems if name not in (self.small, self.large)]
        if strangers or self.small not in systems:
            raise CardError(
                f"the card is about {quoted(self.small)} before {quoted(self.large)}; the records "
                f"are of {quoted_names(systems)}"
            )
        if self.signal not in table:
            raise CardError(
                f"the card reads the column {quoted(self.signal)}, which the records lack"
            )
        rows = table[table["system"] == self.small]
        if self.signal != "confidence":
            rows = with_signal(rows, self.signal, self.small)
        confidence = rows["confidence"].to_numpy(dtype=float)
        deferred = defers(confidence, threshold)
        reason = [self.reason(value) for value in confidence]
        routed = rows.assign(deferred=deferred, reason=reason).reset_index(drop=True)
        if self.recalibration:
            routed["probability"] = self.recalibration.apply(confidence)
        return routed

    def reason(self, confidence: float) -> str:
        """Why a question with this confidence is kept or deferred."""
        if np.isnan(confidence):
            return "no confidence"
        deferred = bool(defers([confidence], self.usable())[0])
        return f"{confidence:.6g} is {'below' if deferred else 'at least'} {self.threshold:.6g}"

    def describe(self) -> str:
        """The card in a few lines of text."""
        expected = self.expected

        def share(name: str) -> str:
            of = expected[name]
            return f"{of.estimate:.1%} [{of.low:.1%}, {of.high:.1%}]"

        mix = ", ".join(f"{name} {n:,}" for name, n in self.datasets.items())
        if self.threshold is None:
            return f"No threshold can be certified, because {self.refusal}. ({mix})"
        lines = [
            f"Ask {self.large} where {self.small}'s {self.signal} is below {self.threshold:.6g} "
            "or missing.",
            self.guarantee.words,
            f"On the {self.questions:,} questions that chose it: right {share('accuracy')}, "
            f"{self.large} alone {share('large_accuracy')}; deferred {share('deferral_rate')}; "
            f"saved {share('cost_saving')} of its cost.",
            f"Questions: {mix}. Fewest that could certify this: {self.smallest_questions:,}.",
        ]
        if expected["cost_saving"].estimate < 0:
            lines.append(f"This costs more than {self.large} alone would.")
        if self.least_deferral is not None:
            lines.append(f"No confidence at all could defer less than {self.least_deferral:.1%}.")
        return "\n".join(lines)
