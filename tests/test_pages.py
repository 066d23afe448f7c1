"""What an executed notebook becomes as a page: numbers in prose, folds, figures, links."""

import base64
import copy
import re
from pathlib import Path

import pytest
import yaml

from corea.book import display, prose
from corea.book.colours import DARK
from corea.workflow import PipelineError
from corea.workflow.notebooks import read_notebook
from corea.workflow.pages import WORDS_A_MINUTE, finish, lay_out, link_claims, words
from corea.workflow.render import chapter_numbers

ROOT = Path(__file__).resolve().parent.parent
SVG = '<svg width="72pt"><path style="stroke: #262626"/><path style="fill: #123456"/></svg>'


def markdown(text):
    return {"cell_type": "markdown", "id": "m", "metadata": {}, "source": text}


def code(source, *outputs, tags=()):
    shown = [{"output_type": "display_data", "metadata": {}, "data": data} for data in outputs]
    return {
        "cell_type": "code", "id": "c", "metadata": {"tags": [*tags]}, "source": source,
        "outputs": shown, "execution_count": 1,
    }  # fmt: skip


def image(alt="drawn", name=""):
    data = base64.b64encode(SVG.encode()).decode()
    named = f' id="{name}"' if name else ""
    return {
        "text/html": f'<figure class="corea-figure"{named}><img alt="{alt}" '
        f'src="data:image/svg+xml;base64,{data}" style="background: #fff">'
        "<figcaption>It rises.</figcaption></figure>"
    }


def said(**values):
    return prose.say(**values)._repr_mimebundle_()


def page(tmp_path, *cells, chapter=3):
    notebook = {"cells": copy.deepcopy([markdown("# A question?"), *cells])}
    finish(notebook, "notebooks/x.ipynb")
    lay_out(notebook, "notebooks/x.ipynb", chapter, tmp_path / "figures")
    return notebook["cells"]


def test_a_number_stands_in_the_prose_and_its_cell_shows_nothing(tmp_path):
    cells = page(
        tmp_path,
        code("n = say()\nn", said(saved="31 % [28, 34]")),
        markdown("Saves {eval}`n.saved`."),
    )
    assert "".join(cells[2]["source"]) == "Saves 31 % \\[28, 34\\]."
    assert cells[1]["outputs"] == []


def test_a_number_may_be_said_behind_the_prose(tmp_path):
    cells = page(tmp_path, markdown("Saves {eval}`n.saved`."), code("n", said(saved="3")))
    assert cells[1]["source"] == "Saves 3."


def test_a_number_that_nothing_says_fails_the_build_and_is_named(tmp_path):
    with pytest.raises(PipelineError, match=r"notebooks/x\.ipynb, cell 2: .* 'lost'"):
        page(tmp_path, markdown("Saves {eval}`n.lost`."))


def test_a_downloaded_notebook_writes_no_tables():
    given = 'seed = 3\noutput_dir = "build/smoke/tables/x"\nn_bins = 4\n'
    cell = code(given, tags=["injected-parameters"])
    finish({"cells": [cell]}, "notebooks/x.ipynb")
    assert cell["source"] == "seed = 3\nn_bins = 4\n"


def test_what_is_said_is_text():
    with pytest.raises(TypeError, match=r"saved is 0\.3; expected it formatted"):
        prose.say(saved=0.3)


def test_said_values_hold_no_markup_and_no_control_characters():
    values = prose.said(code("n", said(name="*a* [b](c) <i> $x$ `y`\x1b")))
    filled = prose.fill("{eval}`n.name`", values)
    assert filled == r"\*a\* \[b\](c) \<i\> \$x\$ \`y\`␛"


def test_jupyterlab_shows_a_value_without_quotation_marks():
    assert repr(prose.say(saved="31 %").saved) == "31 %"


def test_code_is_folded_with_what_leads_to_it_but_a_lesson_is_shown(tmp_path):
    cells = page(
        tmp_path,
        code("seed = 0", tags=["parameters"]),
        code("a = 1"),
        code("b", {"text/html": "<p>1</p>"}),
        code("lesson", {"text/html": "<p>2</p>"}, tags=["lesson"]),
        code("c = 3"),
    )
    assert [cell["source"] for cell in cells[1:]] == ["seed = 0\n\na = 1\n\nb", "lesson", "c = 3"]
    assert [cell["metadata"]["tags"] for cell in cells[1:]] == [
        ["hide-input"],
        ["lesson"],
        ["hide-input"],
    ]
    assert cells[1]["metadata"]["mystnb"]["code_prompt_show"] == "Code (5 lines)"


def test_figures_and_tables_are_numbered_apart_and_linked(tmp_path):
    import pandas as pd

    table = display.table(pd.DataFrame({"x": [1]}), "Ones.", name="ones").data
    cells = page(
        tmp_path,
        markdown("See [Figure](#rise) and [Table](#ones)."),
        code("a", image()),
        code("b", image(name="rise"), {"text/html": table}),
    )
    assert cells[1]["source"] == (
        'See <a href="#rise">Figure 3.2</a> and <a href="#ones">Table 3.1</a>.'
    )
    outputs = [o["data"]["text/html"] for cell in cells for o in cell.get("outputs", [])]
    assert "<strong>Figure 3.1.</strong> It rises." in outputs[0]
    assert "<strong>Figure 3.2.</strong> It rises." in outputs[1]
    assert "<strong>Table 3.1.</strong> Ones." in outputs[2]


def test_a_page_that_is_no_chapter_counts_from_one(tmp_path):
    cells = page(tmp_path, code("a", image()), chapter=None)
    assert "<strong>Figure 1.</strong>" in cells[1]["outputs"][0]["data"]["text/html"]


def test_a_link_to_no_figure_fails_the_build_and_is_named(tmp_path):
    with pytest.raises(PipelineError, match="cell 2: no figure or table is named nothing"):
        page(tmp_path, markdown("See [Figure](#nothing)."))


def test_a_figure_is_two_files_of_one_picture(tmp_path):
    html = page(tmp_path, code("a", image()))[1]["outputs"][0]["data"]["text/html"]
    light, dark = (
        next((tmp_path / "figures").glob(f"*-{theme}.svg")) for theme in ("light", "dark")
    )
    assert light.read_text() == SVG
    assert dark.read_text() == SVG.replace("#262626", DARK["#262626"])
    assert html.count("<img ") == 2
    for file in (light, dark):
        assert f'src="../_static/figures/{file.name}"' in html


def test_claims_are_links_and_other_brackets_are_not():
    text = "It costs less (A4: holds), and more (see A5: fails)."
    linked = link_claims(text, "claims.html")
    assert linked.count("<a ") == 1
    assert 'href="claims.html#A4">A4: holds</a>' in linked


def test_reading_time_counts_prose_alone(tmp_path):
    text = "word " * 450 + "\n\n$$ x + y $$\n\n:::{note}\n:class: big\nmore words here\n:::"
    notebook = {"cells": [markdown("# A question?"), markdown(text), code("not prose " * 500)]}
    assert words(notebook) == 3 + 450 + 3
    cells = page(tmp_path, markdown(text))
    assert cells[0]["source"].endswith('<p class="corea-minutes">2 min</p>')


def test_what_is_downloaded_has_its_figures_in_it_and_its_code_plain():
    notebook = {
        "cells": [
            markdown("# A question?\n\nSaves {eval}`n.saved`."),
            code("n", said(saved="3"), tags=["parameters"]),
            code("a", image()),
        ]
    }
    finish(notebook, "notebooks/x.ipynb", "L1")
    assert notebook["cells"][0]["source"] == "# A question? · L1\n\nSaves 3."
    assert notebook["cells"][1]["metadata"]["tags"] == ["parameters"]
    assert notebook["cells"][2]["outputs"][0]["data"] == image()


def test_chapters_are_counted_through_the_parts_that_are_numbered():
    parts = [
        {"caption": "One", "chapters": [{"file": "book/one"}]},
        {"numbered": 1, "chapters": [{"file": "notebooks/a"}, {"file": "notebooks/b"}]},
        {"numbered": 1, "chapters": [{"file": "notebooks/c", "sections": [{"file": "x"}]}]},
    ]
    assert chapter_numbers({"parts": parts}) == {
        "notebooks/a": 1,
        "notebooks/b": 2,
        "notebooks/c": 3,
    }
    whole = {"options": {"numbered": 1}, "chapters": [{"file": "notebooks/a"}]}
    assert chapter_numbers(whole) == {"notebooks/a": 1}
    assert chapter_numbers({"chapters": [{"file": "notebooks/a"}]}) == {}


def test_home_has_an_answer_and_the_minutes_of_every_chapter():
    home = read_notebook(ROOT / "notebooks" / "home.ipynb")
    text = "\n".join("".join(cell["source"]) for cell in home["cells"])
    rows = re.findall(r"^\| \{doc\}`(\w+)` \| (\S[^|]+) \| [^|]+ \| (\d+) \|$", text, re.MULTILINE)
    chapters = chapter_numbers(yaml.safe_load((ROOT / "_toc.yml").read_text("utf-8")))
    notebooks = [page.partition("/")[2] for page in chapters if page.startswith("notebooks/")]
    assert {name for name, *_ in rows} == {*notebooks}
    for name, _, minutes in rows:
        chapter = read_notebook(ROOT / "notebooks" / f"{name}.ipynb")
        for cell in chapter["cells"]:
            cell["source"] = "".join(cell["source"])
        assert abs(words(chapter) / WORDS_A_MINUTE - int(minutes)) < 1, name
