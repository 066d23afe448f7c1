"""Questions and the prompts they are asked with.

The instruction is paper A's (section 3.1), the router's prompt too (section 4.2). Choices of
our own, where the text leaves them open:

1. The instruction follows the question on a line of its own.
2. The router's prompt has its two parts on lines of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

INSTRUCTION = (
    "Please reason step by step, and put your final answer within \\boxed{}, then output the "
    "confidence (0.0-1.0) that your answer is correct within \\confidence{}."
)
ANSWER_INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
"""For a model whose confidence nobody reads, such as a cascade's last: chat models that are asked
for a confidence in an unknown command tend to box it, behind the answer."""

ROUTER_INSTRUCTION = (
    "Instruction: Estimate and output the probability (0.0-1.0) that a small language model "
    "(10B) can answer the question correctly."
)


@dataclass(frozen=True)
class Question:
    """One question of a dataset.

    Attributes:
        dataset: Name of the dataset.
        question_id: Name of the question, unique in its dataset.
        text: The question itself.
        gold: The right answer.
        kind: ``"math"`` or ``"choice"``: how an answer is compared with the right one
            (:func:`corea.tasks.verify.verify_batch`).
        level: Graded difficulty from 1, or None where the dataset has none.
        options: What the letters A, B, ... stand for in a question of kind ``"choice"``; empty
            where there are none.
        solution: The way to the answer, worked out, where the dataset has one; it is shown in
            warm-ups only.
        instruction: What stands behind the text in the prompt.
    """

    dataset: str
    question_id: str
    text: str
    gold: str
    kind: str
    level: float | None = None
    options: tuple[str, ...] = ()
    solution: str = ""
    instruction: str = INSTRUCTION

    @property
    def prompt(self) -> str:
        """What the model is given: the question, then the instruction.

        Source: paper A, section 3.1.

        Example:
            >>> print(Question("chains", "0", "9-1+7", "2", "choice").prompt[:19])
            9-1+7
            Please reason
        """
        return f"{self.text}\n{self.instruction}"

    @property
    def router_prompt(self) -> str:
        """What the router is given, before anything is answered.

        Source: paper A, section 4.2.

        Example:
            >>> print(Question("chains", "0", "9-1+7", "2", "choice").router_prompt[:28])
            Question: 9-1+7
            Instruction:
        """
        return f"Question: {self.text}\n{ROUTER_INSTRUCTION}"
