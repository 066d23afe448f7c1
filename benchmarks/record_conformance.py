"""Write what `corea.book.conformance` reads: results that need torch, and counts of question sets.

    python benchmarks/record_conformance.py          # data/conformance.csv, with the `test` extra
    python benchmarks/record_conformance.py FOLDER   # data/conformance_verdicts.csv

FOLDER holds the question sets, which are not shipped.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from importlib.metadata import version
from itertools import permutations
from pathlib import Path

import pandas as pd

from corea.book import conformance
from corea.book.conformance import CONVENTIONS, SETS
from corea.tasks.papers import load_questions
from corea.tasks.verify import verify_batch


def _without(pattern, instead=""):
    return lambda text: re.sub(pattern, instead, text)


def _six_decimals(text):
    """A number that six decimals do not write exactly, rounded to them; others as they are."""
    from math_verify import parse
    from sympy import Expr, Rational

    value = next(iter(parse(rf"\boxed{{{text}}}", parsing_timeout=None)), None)
    if not isinstance(value, Expr) or not (value.is_number and value.is_real):
        return text
    rounded = f"{float(value):.6f}"
    return text if value.doit() == Rational(rounded) else rounded


def _lower_case(text):
    return re.sub(r"(?<![\\a-zA-Z])[A-Z](?![a-zA-Z])", lambda letter: letter[0].lower(), text)


# what each convention leaves of a text
PLAIN = {
    "units do not count": _without(r"\\(text|mbox)\s*\{[^}]*\}(\^\{?\d\}?)?$|\^\{?\\circ\}?|^\\\$"),
    "percent is the number or its hundredth": _without(r"\s*\\?%"),
    "six decimals are enough": _six_decimals,
    "letters in either case": _lower_case,
    "a base may be left out": _without(r"(?<=\d)_\{?\d+\}?"),
    "a name before the value may be left out": _without(r"^(\$?)[^,=]*=([^,=]*)$", r"\1\2"),
    "a list is its set": _without(r"^\$?(-?[^(){}\[\],]+(?:,-?[^(){}\[\],]+)+)\$?$", r"\{\1\}"),
    "words behind a number": _without(r"\\text\s*\{\s*(thousand|\w*illion|dozen)s?\s*\}"),
    "a.m. and p.m.": _without(r"[ap]\.?m\.?(?=\}?$)"),
}


def count_conventions(folder, sets=SETS):
    """How many golds and answers of real question sets each convention touches.

    A gold is touched if what the convention leaves of it differs and is right. Answers are the
    other golds of the set, each to each question; one is touched if it is right, is another
    text than the gold, and is the same to the convention. Texts are not kept. ``folder`` is as
    for :func:`corea.tasks.papers.load_questions`, with a ``SOURCE.tsv`` in each set.
    """
    rows = []
    for dataset in sets:
        listed = pd.read_csv(Path(folder, dataset, "SOURCE.tsv"), sep="\t", dtype=str)
        origin = listed.set_index("file").loc["test.jsonl"]
        golds = [question.gold for question in load_questions(dataset, "test", folder=folder)]
        totals = {
            "n_golds": len(golds),
            "n_answers": len(golds) * (len(golds) - 1),
            "source": f"{origin['repo']}@{origin['commit']}",
            "version": version("math-verify"),
        }
        for name in (convention.name for convention in CONVENTIONS):
            left = [(PLAIN[name](gold), gold) for gold in golds]
            changed = [pair for pair in left if pair[0] != pair[1] and pair[0].strip()]
            alike = defaultdict(list)
            for text, gold in left:
                alike[text].append(gold)
            same = [(a, g) for group in alike.values() for a, g in permutations(group, 2) if a != g]
            asked = changed + same
            right = verify_batch([a for a, _ in asked], [g for _, g in asked], "math")
            counts = {"golds": right[: len(changed)], "answers": right[len(changed) :]}
            touched = {what: part.count(True) for what, part in counts.items()}
            rows.append({"convention": name, "dataset": dataset} | touched | totals)
    return pd.DataFrame(rows)


def main(folder=""):
    if folder:
        table, path = count_conventions(folder), conformance.VERDICTS
    else:
        table = pd.concat(map(conformance.run, conformance.RECORDED), ignore_index=True)
        path = conformance.RESULTS
    table.to_csv(path, index=False, lineterminator="\n")
    print(f"{len(table)} rows written to {path.name}")


if __name__ == "__main__":
    main(*sys.argv[1:])
