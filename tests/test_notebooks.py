"""What every chapter's notebook must be. tests/test_pipeline.py tests how they are run."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from corea.workflow.notebooks import GIVEN, notebook_parameters
from corea.workflow.profiles import load_profile
from corea.workflow.render import table_of_contents

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PROFILES = sorted(path.stem for path in (ROOT / "profiles").glob("*.yaml"))
FETCHED = {"base_model", "decision_base"}  # models are fetched
MADE = {"pretrain", "decision_pretrain"}  # or made: a profile of real models may need no others

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path):
    return json.loads(path.read_text("utf-8"))


@pytest.mark.parametrize("name", PROFILES)
def test_every_notebook_is_in_every_profile_and_every_run_is_a_page(monkeypatch, name):
    monkeypatch.chdir(ROOT)
    profile = load_profile(name)
    contents = json.dumps(table_of_contents(profile))
    listed = re.findall(r'"(?:file|root)": "([^"]+)"', contents)
    assert len(set(listed)) == len(listed)
    assert {f"notebooks/{run}" for run in profile.runs} == {
        page for page in listed if page.startswith("notebooks/")
    }
    for page in listed:
        assert page.startswith("notebooks/") or Path(f"{page}.md").is_file()
    for run in profile.runs.values():
        assert set(run.parameters) == set(notebook_parameters(run.notebook)) - {"output_dir"}
    used = {run.notebook.stem for run in profile.runs.values()}
    absent = {p.stem for p in NOTEBOOKS} - used
    if any(run.lenient for run in profile.runs.values()):  # of a partial profile
        absent -= {"confidence_models"}
    assert absent <= (MADE if used & FETCHED else FETCHED)


def test_the_profiles_are_those_that_the_book_needs():
    assert {"laptop", "smoke", "gpu", "paper"} <= set(PROFILES)


@each_notebook
def test_defaults_are_those_of_the_laptop_or_gpu_profile(path):
    defaults = notebook_parameters(path)
    assert defaults["profile"] == ("gpu" if path.stem in FETCHED else "laptop")
    assert (defaults["seed"], defaults["output_dir"]) == (0, "")


@each_notebook
def test_every_parameter_says_what_it_is(path):
    (cell,) = [c for c in read(path)["cells"] if "parameters" in c["metadata"].get("tags", [])]
    lines = "".join(cell["source"]).splitlines()
    for name in notebook_parameters(path):
        (line,) = [line for line in lines if re.match(rf"{name}\b.*=", line)]
        assert re.search(r"  # \w", line), f"{name} has no comment"
    assert set(GIVEN) <= set(notebook_parameters(path))


@each_notebook
def test_committed_without_outputs(path):
    for cell in read(path)["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
        assert "papermill" not in cell["metadata"]


@each_notebook
def test_metadata_are_those_of_any_python_3(path):
    notebook = read(path)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    work = {"corea": notebook["metadata"]["corea"]} if "corea" in notebook["metadata"] else {}
    assert notebook["metadata"] == work | {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {"name": "python"},
    }
    names = [cell["id"] for cell in notebook["cells"]]
    assert len(set(names)) == len(names)


@each_notebook
def test_one_question_is_the_title(path):
    headings = [
        (number, line)
        for number, cell in enumerate(read(path)["cells"])
        if cell["cell_type"] == "markdown"
        for line in "".join(cell["source"]).splitlines()
        if line.startswith("# ")
    ]
    assert len(headings) == 1
    assert headings[0][0] == 0
    assert headings[0][1].endswith("?")


@each_notebook
def test_no_cell_is_long(path):
    for number, cell in enumerate(read(path)["cells"], 1):
        if cell["cell_type"] == "code":
            assert "".join(cell["source"]).count("\n") < 30, f"cell {number}"


def _written_here(node):
    """Whether a template is text of the page itself, in which no value stands yet."""
    if isinstance(node, ast.IfExp):
        return _written_here(node.body) and _written_here(node.orelse)
    if isinstance(node, ast.Starred):
        return _written_here(node.value)
    if isinstance(node, ast.BinOp):  # [template] * condition
        return _written_here(node.left)
    if isinstance(node, ast.List):
        return all(map(_written_here, node.elts))
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Dict):  # {verdict: template}
        return all(map(_written_here, node.value.values))
    return isinstance(node, ast.Constant)


@each_notebook
def test_no_value_is_part_of_a_template(path):
    """A name with braces is no template: names and numbers are passed as values."""
    for cell in read(path)["cells"]:
        if cell["cell_type"] != "code":
            continue
        for node in ast.walk(ast.parse("".join(cell["source"]))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "display.reading":
                for template in node.args:
                    assert _written_here(template), ast.unparse(template)


@each_notebook
def test_last_cell_says_where_the_results_come_from(path):
    assert "provenance_table(" in "".join(read(path)["cells"][-1]["source"])


NOT_OURS = re.compile(
    r"\b(leverag\w+|utili[sz]\w*|novel|state[- ]of[- ]the[- ]art|delv\w+|paradigm\w*|cutting[- ]edge|"
    r"seamless\w*|holistic\w*|obviously|of course|basically|simply|certainly|in order to|note that|"
    r"plethora|myriad|crucial\w*|it is worth)\b",
    re.IGNORECASE,
)


def test_prose_has_none_of_the_words_that_say_nothing():
    prose = {path.name: path.read_text("utf-8") for path in (ROOT / "book").glob("*.md")}
    for path in NOTEBOOKS:
        cells = [cell for cell in read(path)["cells"] if cell["cell_type"] == "markdown"]
        prose[path.name] = "\n".join("".join(cell["source"]) for cell in cells)
    found = {name: [word[0] for word in NOT_OURS.finditer(text)] for name, text in prose.items()}
    assert {name: words for name, words in found.items() if words} == {}


def test_nbstripout_takes_outputs_and_keeps_tags(tmp_path, write_notebook):
    path = tmp_path / "n.ipynb"
    write_notebook(path, ("code", "a = 1", "parameters"), ("code", "a"))
    notebook = read(path)
    notebook["cells"][1] |= {
        "execution_count": 2,
        "outputs": [{"output_type": "stream", "name": "stdout", "text": ["1"]}],
    }
    path.write_text(json.dumps(notebook))
    command = [sys.executable, "-m", "nbstripout", "--keep-id", str(path)]
    subprocess.run(command, check=True, timeout=60)
    first, second = read(path)["cells"]
    assert first["metadata"]["tags"] == ["parameters"]
    assert (first["id"], second["id"]) == ("cell-0", "cell-1")
    assert (second["outputs"], second["execution_count"]) == ([], None)
