"""Which datasets belong together: the microworld's, the papers', or generated ones.

A :class:`Suite` says what is asked, which dataset is trained on, and which of the papers'
datasets each stands for. Notebooks take it from the runs they read, so the same chapter shows the
microworld or real datasets, whatever its runs were made of.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from corea import checks

if TYPE_CHECKING:
    from corea.tasks.decision_questions import DecisionQuestion
    from corea.tasks.questions import Question

DATA = "COREA_DATA"
"""Environment variable that names the folder with the original files of the papers' datasets;
without it they come from the hub."""

WITHHELD = ("gpqa",)
"""Datasets whose authors ask that their text not be published: no run leaves it to a page."""


@dataclass(frozen=True)
class Suite:
    """Datasets that belong together.

    Attributes:
        name: ``"microworld"``, ``"papers"`` or ``"generated"``.
        datasets: Test sets of paper A's experiments, the one that is trained on first.
        groups: Datasets behind each column group of Tables 1 and 11. Source: paper A, section 4.1.
        counterparts: Dataset or group of paper A to what stands in its place.
        tables: Dataset to the table of paper A that has its cascades.
        tasks: Task of paper B to its dataset of training and the one of another distribution.
        decision_counterparts: Dataset of paper B to what stands in its place.
    """

    name: str
    datasets: tuple[str, ...]
    groups: Mapping[str, tuple[str, ...]]
    counterparts: Mapping[str, str]
    tables: Mapping[str, int]
    tasks: Mapping[str, tuple[str, str]]
    decision_counterparts: Mapping[str, str] = field(default_factory=dict)

    @property
    def domain(self) -> str:
        """The dataset that is trained on."""
        return self.datasets[0]

    @property
    def each(self) -> dict[str, tuple[str, ...]]:
        """Every dataset by itself, as in Tables 5 to 10 and 12 to 15."""
        return {name: (name,) for name in self.datasets}

    @property
    def together(self) -> dict[str, tuple[str, ...]]:
        """All datasets together, as in Tables 2 to 4."""
        return {"all datasets": self.datasets}

    @property
    def stands_for(self) -> dict[str, str]:
        """Dataset or group to the one of paper A in whose place it stands."""
        return {ours: theirs for theirs, ours in self.counterparts.items()}

    @property
    def decision_datasets(self) -> tuple[str, ...]:
        """All datasets of paper B's experiments."""
        return tuple(name for pair in self.tasks.values() for name in pair)

    def questions(self, dataset: str, part: str, n: int = 0) -> list[Question]:
        """Questions to be answered in words; with n = 0 all that a dataset of the papers has."""
        if self is MICROWORLD:
            from corea.tasks import microworld

            return microworld.questions(microworld.World(), dataset, part, n)
        if self is GENERATED:
            from corea.tasks import generated

            return generated.load_questions(dataset, part, n)
        from corea.tasks import papers

        return papers.load_questions(dataset, part, n or None, folder=os.environ.get(DATA, ""))

    def decisions(
        self, dataset: str, part: str, n: int = 0, *, labels: str = "verdicts", longest: int = 0
    ) -> list[DecisionQuestion]:
        """Questions that one token decides; with n = 0 all that a dataset of the papers has.

        Args:
            dataset: Its name.
            part: Such as ``"test"``.
            n: Questions, at most.
            labels: How verdicts are asked for, :data:`corea.tasks.decision_questions.LABELS`.
            longest: Most characters of a question's text, or of a message; 0: any. Longer ones
                are left out before n are taken (:meth:`left_out`).
        """
        from corea.tasks.decision_questions import LABELS, lettered

        checks.one_of(labels, "labels", LABELS)
        if self is not PAPERS and longest:
            raise ValueError(f"longest is {longest}; expected 0 but for the papers' datasets")
        if self is MICROWORLD:
            from corea.tasks import decision_world

            found = decision_world.questions(decision_world.DecisionWorld(), dataset, part, n)
        elif self is GENERATED:
            from corea.tasks import generated

            found = generated.load_decisions(dataset, part, n)
        else:
            from corea.tasks import papers

            folder = os.environ.get(DATA, "")
            found = papers.load_decisions(dataset, part, n or None, folder=folder, longest=longest)
        return [lettered(question) for question in found] if labels == "letters" else found

    def left_out(self, dataset: str, part: str, longest: int) -> int:
        """How many questions of a part :meth:`decisions` leaves out as longer than ``longest``."""
        if not longest:
            return 0
        return len(self.decisions(dataset, part)) - len(
            self.decisions(dataset, part, longest=longest)
        )

    def tests(self, n: int = 0) -> list[Question]:
        """Test questions of all datasets, at most n of each, each dataset's in a row."""
        return [question for name in self.datasets for question in self.questions(name, "test", n)]


MICROWORLD = Suite(
    name="microworld",
    datasets=("chains", "additions", "words", "long_chains", "fact_sums", "facts"),
    groups={
        "chains": ("chains",),
        "OOD reasoning": ("additions", "words", "long_chains"),
        "OOD choice": ("fact_sums", "facts"),
    },
    counterparts={
        "DeepMath500": "chains",
        "OOD Math": "OOD reasoning",
        "OOD Non-Math": "OOD choice",
        "Math500": "additions",
        "GSM8K": "words",
        "OlympiadBench": "long_chains",
        "GPQA": "fact_sums",
        "CommonsenseQA": "facts",
        "all datasets": "all datasets",
    },
    tables={
        "chains": 5,
        "additions": 6,
        "words": 7,
        "long_chains": 8,
        "fact_sums": 9,
        "facts": 10,
    },
    tasks={"choices": ("choices", "fact_choices"), "messages": ("messages", "lists")},
    decision_counterparts={
        "CSQA": "choices",
        "OBQA": "fact_choices",
        "OpenAI": "messages",
        "XSTest": "lists",
    },
)
"""The world that models are trained on from random weights."""

PAPERS = Suite(
    name="papers",
    datasets=("deepmath", "math500", "gsm8k", "olympiadbench", "gpqa", "commonsenseqa"),
    groups={
        "deepmath": ("deepmath",),
        "OOD math": ("math500", "gsm8k", "olympiadbench"),
        "OOD non-math": ("gpqa", "commonsenseqa"),
    },
    counterparts={
        "DeepMath500": "deepmath",
        "OOD Math": "OOD math",
        "OOD Non-Math": "OOD non-math",
        "Math500": "math500",
        "GSM8K": "gsm8k",
        "OlympiadBench": "olympiadbench",
        "GPQA": "gpqa",
        "CommonsenseQA": "commonsenseqa",
        "all datasets": "all datasets",
    },
    tables={
        "deepmath": 5,
        "math500": 6,
        "gsm8k": 7,
        "olympiadbench": 8,
        "gpqa": 9,
        "commonsenseqa": 10,
    },
    tasks={
        "choices": ("commonsenseqa", "openbookqa"),
        "messages": ("openai_moderation", "xstest"),
    },
    decision_counterparts={
        "CSQA": "commonsenseqa",
        "OBQA": "openbookqa",
        "OpenAI": "openai_moderation",
        "XSTest": "xstest",
    },
)
"""The papers' own datasets (:mod:`corea.tasks.papers`)."""

GENERATED = Suite(
    name="generated",
    datasets=("sums", "long_sums", "products"),
    groups={"sums": ("sums",), "OOD": ("long_sums", "products")},
    counterparts={
        "DeepMath500": "sums",
        "OOD Math": "OOD",
        "Math500": "long_sums",
        "GSM8K": "products",
        "all datasets": "all datasets",
    },
    tables={"sums": 5, "long_sums": 6, "products": 7},
    tasks={
        "choices": ("sum_choices", "product_choices"),
        "messages": ("sum_checks", "product_checks"),
    },
    decision_counterparts={
        "CSQA": "sum_choices",
        "OBQA": "product_choices",
        "OpenAI": "sum_checks",
        "XSTest": "product_checks",
    },
)
"""Easy questions that a package makes (:mod:`corea.tasks.generated`), for small real models."""

SUITES: Mapping[str, Suite] = {suite.name: suite for suite in (MICROWORLD, PAPERS, GENERATED)}
"""The suites by name."""


def of(datasets: Iterable[str]) -> Suite:
    """The suite that datasets are of.

    Example:
        >>> of(["chains", "facts"]).name, of(["gsm8k"]).domain
        ('microworld', 'deepmath')
    """
    found = set(datasets)
    for suite in SUITES.values():
        if found <= {*suite.datasets, *suite.decision_datasets}:
            return suite
    raise ValueError(
        f"datasets are {', '.join(sorted(map(str, found)))}; expected those of one of "
        + ", ".join(SUITES)
    )
