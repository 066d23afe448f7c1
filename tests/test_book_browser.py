"""The built book, opened in headless Chromium as a reader would."""

import contextlib
import csv
import io
import json
import re
import unicodedata
from pathlib import Path

import page_checks
import pypdf
import pytest
from axe_playwright_python.sync_playwright import Axe

from corea.workflow.profiles import load_profile, page_entries
from corea.workflow.render import table_of_contents

ROOT = Path(__file__).resolve().parent.parent


with contextlib.chdir(ROOT):
    PROFILE = load_profile("smoke")
    PAGES = [entry["file"] for entry in page_entries(table_of_contents(PROFILE))]
# pages of one notebook differ in numbers alone: its first run stands for them
FIRST = {run.notebook: run.name for run in reversed(PROFILE.runs.values())}
LATER = {f"notebooks/{name}" for name in PROFILE.runs if name not in FIRST.values()}

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]  # the first test builds the book


def check_whole(page):
    """Check that a page has its heading, and that every formula is typeset and none is wrong."""
    assert page.title().endswith("The COREA book")
    assert page.locator("article h1").count() == 1
    formulas = page.locator(".math").count()
    assert page.locator(".math mjx-container").count() == formulas
    assert page.locator("mjx-merror").count() == 0


def check_open(visit, address):
    """Open a page and check that it is whole, complains of nothing and asks nobody outside."""
    visit.open(address)
    assert not visit.outside
    assert not visit.complaints
    check_whole(visit.page)


@pytest.mark.parametrize("page", sorted(LATER))
def test_page_of_another_run_opens_whole(visit, site, page):
    check_open(visit, f"{site}{page}.html")


@pytest.mark.parametrize("page", [name for name in PAGES if name not in LATER])
def test_page_is_whole_and_looks_right_at_three_widths_in_both_themes_and_on_paper(
    visit, site, page
):
    check_open(visit, f"{site}{page}.html")
    shown, axe = visit.page, Axe()
    page_checks.hold_still(shown)
    taken = page_checks.weights(shown)
    assert taken["page"] <= 1.5 * page_checks.MEGABYTE
    assert taken.total() <= (7 if taken["plotly"] else 2.5) * page_checks.MEGABYTE
    assert page_checks.without_words(shown) == []
    for width in page_checks.WIDTHS:
        page_checks.look_at(shown, width)
        assert page_checks.sideways(shown) <= 0
    assert page_checks.small_text(shown) == []  # the last width is a telephone's
    page_checks.unfold(shown)
    shown.emulate_media(media="print")
    shown.set_viewport_size({"width": 718, "height": 1000})  # A4 less its margins
    assert page_checks.cut_on_paper(shown) == []
    page_checks.leave_samples(shown)
    shown.emulate_media(media="screen")
    page_checks.look_at(shown, 390)
    assert page_checks.inaccessible(shown, axe) == []
    shown.emulate_media(color_scheme="dark")
    page_checks.look_at(shown, 1300)
    assert shown.evaluate("document.documentElement.dataset.theme") == "dark"
    assert page_checks.inaccessible(shown, axe, ["color-contrast"]) == []
    assert not visit.outside
    assert not visit.complaints


@pytest.mark.parametrize("page", ["index", "notebooks/cascade", "notebooks/calibration"])
def test_page_opens_from_disk(visit, book, page):
    check_open(visit, f"{book.as_uri()}/{page}.html")


@pytest.mark.parametrize("chapter", ["claims", "sft_or_grpo", "published_tables"])
def test_print_has_every_column_of_every_table(visit, site, chapter):
    visit.open(f"{site}notebooks/{chapter}.html")
    printed = pypdf.PdfReader(io.BytesIO(visit.page.pdf(format="A4")))
    text = unicodedata.normalize("NFKC", "".join(page.extract_text() for page in printed.pages))
    paper = "".join(text.split())
    columns = visit.page.locator("article table thead tr:last-child th").all_text_contents()
    assert len(columns) > 10
    assert [name for name in columns if "".join(name.split()) not in paper] == []


def test_search_works_offline(visit, site):
    visit.open(f"{site}search.html?q=confidence")
    visit.page.locator("#search-results li").first.wait_for()
    assert not visit.outside
    assert not visit.complaints


def test_slider_changes_the_numbers_by_mouse_and_by_keyboard(visit, site):
    visit.open(f"{site}notebooks/cascade.html")
    figure = visit.page.locator("figure:has(.corea-interactive)").first
    slider, readout = figure.locator("input[type=range]"), figure.locator("output")
    slider.scroll_into_view_if_needed()
    figure.locator(".main-svg").first.wait_for()

    def numbers():
        said = re.search(
            r"pass@1 ([\d.]+)%, cost ([\d,.]+), deferred ([\d.]+)%, saving ([+-][\d.]+)%",
            readout.text_content(),
        )
        assert said, readout.text_content()
        assert slider.get_attribute("aria-valuetext") == readout.text_content()
        marked = figure.locator(".js-plotly-plot").evaluate("plot => plot.data.at(-1).x[0]")
        pass_at_1, cost, deferred, saving = (float(text.replace(",", "")) for text in said.groups())
        assert marked == pytest.approx(cost, abs=0.51)
        return pass_at_1, cost, deferred, saving

    at_first = numbers()
    box = slider.bounding_box()
    height = box["y"] + box["height"] / 2
    visit.page.mouse.click(box["x"] + 2, height)
    nothing = numbers()
    assert nothing[2] == 0  # nothing with a confidence is below it
    visit.page.mouse.click(box["x"] + box["width"] - 2, height)
    everything = numbers()
    assert everything[1] > at_first[1] > nothing[1]
    assert everything[2] > at_first[2]
    assert everything[3] < at_first[3]
    assert everything[0] != nothing[0]
    slider.press("Home")
    assert numbers() == nothing
    stops = int(slider.get_attribute("max"))
    for _ in range(stops):
        before = numbers()
        slider.press("ArrowRight")
        assert numbers()[1] > before[1]  # each stop is a result of its own
    assert numbers() == everything
    assert not visit.complaints


def test_formulas_are_typeset_and_long_code_is_folded_and_opens(visit, site):
    visit.open(f"{site}notebooks/calibration.html")
    assert visit.page.locator("mjx-container").count() > 0
    folded = visit.page.locator("details.above-input").last
    code = folded.locator("pre").first
    assert not code.is_visible()
    folded.locator("summary").click()
    assert code.is_visible()


def test_no_link_is_dead_and_nothing_is_fetched_from_elsewhere(book):
    assert page_checks.dead_links(book) == ([], [])


def test_no_page_names_this_machine(book):
    named = [
        path.name
        for path in [*book.rglob("*.html"), *book.rglob("*.ipynb"), *book.rglob("*.md")]
        if str(ROOT) in path.read_text("utf-8") or str(Path.home()) + "/" in path.read_text("utf-8")
    ]
    assert not named


HOSTILE = [
    "<script>window.pwned=1</script>",
    "<img src=x onerror=window.pwned=1>",
    "</div></td></table><svg onload=window.pwned=1>",
    "**bold** [link](javascript:window.pwned=1) `code`",
    "$\\href{javascript:window.pwned=1}{x}$ \\(y\\) $$z$$",
    "\x1b[31mred\x1b[0m",
    "{x} {0!r} %{meta[0]} _c_ $a$",
]
SHOWN = [*HOSTILE[:5], "␛[31mred␛[0m", HOSTILE[6]]


def test_hostile_records_are_shown_as_text(tmp_path, pipeline, make_repository, serve, visit):
    repository = make_repository(tmp_path, {"your_records": []})
    chapter = (ROOT / "notebooks" / "your_records.ipynb").read_text("utf-8")
    alone = re.sub(r"\[([\w ]+)\]\([\w./]+\.(?:ipynb|md)\)", r"\1", chapter)  # no other pages
    (repository / "notebooks" / "your_records.ipynb").write_text(alone, "utf-8")
    small, large = HOSTILE[0], HOSTILE[1] + HOSTILE[4]
    with (repository / "{x} $y$.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        header = ["dataset", "question_id", "system", "correct", "confidence", "answer", "gold"]
        writer.writerow([*header, "prompt_tokens", "completion_tokens"])
        for question in range(60):
            hostile = HOSTILE[question % len(HOSTILE)]
            dataset = HOSTILE[2 + question % 2]
            right, stated = int(question % 3 == 0), (question % 5) / 10 + 0.2
            row = [dataset, f"{hostile}{question}"]
            writer.writerow([*row, small, right, stated, hostile, hostile, 100, 50])
            writer.writerow([*row, large, int(question % 5 > 0), "", hostile, hostile, 100, 60])
    parameters = {"records": "{x} $y$.csv", "small": small, "large": large, "n_resamples": 20}
    run = {"your_records": {"parameters": parameters}}
    profile = {"profile": "tiny", "seed": 0, "runs": run}
    (repository / "profiles" / "tiny.yaml").write_text(json.dumps(profile), "utf-8")

    for command in (["execute", "tiny", "your_records"], ["render", "tiny"]):
        result = pipeline(repository, *command)
        assert result.returncode == 0, result.stdout + result.stderr

    with serve(repository / "build" / "tiny" / "_build" / "html") as address:
        visit.open(f"{address}notebooks/your_records.html")
        visit.page.wait_for_timeout(500)
        assert visit.page.evaluate("window.pwned") is None
        visit.page.evaluate("document.querySelectorAll('details').forEach(d => (d.open = true))")
        text = visit.page.locator("main").inner_text()
        for shown in SHOWN:
            assert shown in text
        assert visit.page.locator(".cell_output mjx-container").count() == 0
        assert visit.page.locator(".cell_output a[href^=javascript]").count() == 0
        assert visit.page.locator(".cell_output strong", has_text="bold").count() == 0
        figure = visit.page.locator("figure:has(.corea-interactive)").first
        assert HOSTILE[0] in figure.inner_text()
        assert not visit.outside
        assert not visit.complaints
