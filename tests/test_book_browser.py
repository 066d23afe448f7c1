"""The built book, opened in headless Chromium as a reader would."""

import contextlib
import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest

from corea.workflow.profiles import load_profile
from corea.workflow.render import table_of_contents

ROOT = Path(__file__).resolve().parent.parent


def pages(contents):
    """All files of a table of contents, sections too."""
    match contents:
        case dict():
            own = [contents[key] for key in ("root", "file") if key in contents]
            return own + pages([part for part in contents.values() if isinstance(part, list)])
        case list():
            return [page for part in contents for page in pages(part)]
    return []


with contextlib.chdir(ROOT):
    PROFILE = load_profile("smoke")
    PAGES = ["index", *pages(table_of_contents(PROFILE))]
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


@pytest.mark.parametrize("page", PAGES)
def test_page_opens_whole_without_complaint_or_network(visit, site, page):
    visit.open(f"{site}{page}.html")
    assert not visit.outside
    assert not visit.complaints
    check_whole(visit.page)
    # what is wide scrolls by itself, on a desk and on a telephone
    for width in (1300, 390):
        visit.page.set_viewport_size({"width": width, "height": 900})
        visit.page.wait_for_timeout(200)
        excess = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert visit.page.evaluate(excess) <= 0


@pytest.mark.parametrize("page", [name for name in PAGES if name not in LATER])
def test_page_opens_from_disk(visit, book, page):
    visit.open(f"{book.as_uri()}/{page}.html")
    assert not visit.outside
    assert not visit.complaints
    check_whole(visit.page)


def test_formulas_are_there_to_be_typeset(visit, site):
    visit.open(f"{site}notebooks/calibration.html")
    assert visit.page.locator("mjx-container").count() > 0


def test_readable_in_the_dark(visit, site):
    visit.page.emulate_media(color_scheme="dark")
    visit.open(f"{site}notebooks/calibration.html")
    cell = visit.page.locator("table.corea-table td").first
    colour, ground = cell.evaluate(
        """cell => {
            let ground = cell;
            while (getComputedStyle(ground).backgroundColor === 'rgba(0, 0, 0, 0)')
                ground = ground.parentElement;
            return [getComputedStyle(cell).color, getComputedStyle(ground).backgroundColor]
        }"""
    )
    light, dark = (sum(map(int, re.findall(r"\d+", text)[:3])) / 3 for text in (colour, ground))
    assert light - dark > 125


def test_search_works_offline(visit, site):
    visit.open(f"{site}search.html?q=confidence")
    visit.page.locator("#search-results li").first.wait_for()
    assert not visit.outside
    assert not visit.complaints


def test_dragging_the_slider_changes_the_numbers(visit, site):
    visit.open(f"{site}notebooks/cascade.html")
    explorer = visit.page.locator(".corea-interactive").first
    explorer.scroll_into_view_if_needed()

    def numbers():
        text = explorer.locator(".gtitle").text_content()
        said = re.search(r"threshold ([\d.]+): pass@1 ([\d.]+)%, cost ([\d,]+), "
                         r"deferred ([\d.]+)%, saving ([+-][\d.]+)%", text)  # fmt: skip
        assert said, text
        return [float(group.replace(",", "")) for group in said.groups()]

    def drag(share):
        grip = explorer.locator(".slider-grip-rect").bounding_box()
        rail = explorer.locator(".slider-rail-touch-rect").bounding_box()
        mouse = visit.page.mouse
        mouse.move(grip["x"] + grip["width"] / 2, grip["y"] + grip["height"] / 2)
        mouse.down()
        mouse.move(rail["x"] + share * rail["width"], rail["y"] + rail["height"] / 2, steps=20)
        mouse.up()
        visit.page.wait_for_timeout(500)

    at_first = numbers()
    drag(0.02)
    threshold, pass_at_1, cost, deferred, saving = numbers()
    assert threshold < at_first[0]
    assert deferred == 0  # nothing with a confidence is below it
    drag(0.98)
    everything = numbers()
    assert everything[0] > threshold
    assert everything[3] > deferred
    assert everything[2] > cost
    assert everything[4] < saving
    assert everything[1] != pass_at_1
    assert not visit.complaints


def test_long_code_is_folded_and_opens(visit, site):
    visit.open(f"{site}notebooks/calibration.html")
    folded = visit.page.locator("details.above-input").last
    code = folded.locator("pre").first
    assert not code.is_visible()
    folded.locator("summary").click()
    assert code.is_visible()


class _Links(HTMLParser):
    """Addresses in a page, and which of them are fetched without a click."""

    def __init__(self, text):
        super().__init__()
        self.found, self.fetched = [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in {"href", "src"} and value:
                self.found.append(value)
                if tag != "a" and (name == "src" or tag == "link"):
                    self.fetched.append(value)


def test_no_link_is_dead_and_nothing_is_fetched_from_elsewhere(book):
    dead, elsewhere = [], []
    pages = [path for path in book.rglob("*.html") if "_static" not in path.parts]
    assert len(pages) > len(PAGES)
    for path in pages:
        links = _Links(path.read_text("utf-8"))
        elsewhere += [f"{path.name}: {a}" for a in links.fetched if urlsplit(a).netloc]
        for address in links.found:
            if not urlsplit(address).scheme and not urlsplit(address).netloc:
                target = urlsplit(urljoin(path.as_uri(), address))
                if not Path(unquote(target.path)).exists():
                    dead.append(f"{path.name}: {address}")
    assert not dead
    assert not elsewhere


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
        title = visit.page.locator(".corea-interactive .gtitle").text_content()
        assert HOSTILE[0] in title
        assert not visit.outside
        assert not visit.complaints
