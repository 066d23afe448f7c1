"""What holds on every page of the book, looked at in a browser; each function returns what does not.

A page is playwright's; it stands open at an address of a server, since figures are fetched again.
"""

import re
from collections import Counter
from html.parser import HTMLParser
from urllib.parse import unquote, urljoin, urlsplit

WIDTHS = (1600, 1024, 390)
SMALLEST = 9  # pixels of text in a figure, as it is shown
MEGABYTE = 1e6


def hold_still(page):
    """Nothing on the page fades or glides, so that every look sees its end."""
    page.add_style_tag(content="* { animation: none !important; transition: none !important }")


def look_at(page, width):
    """Show a page at a width and wait until nothing moves."""
    page.set_viewport_size({"width": width, "height": 900})
    page.wait_for_timeout(150)


def sideways(page):
    """By how many pixels the page as a whole scrolls sideways; wide things scroll by themselves."""
    return page.evaluate(
        "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )


def small_text(page):
    """Figures of which some text is shown too small, with its size in pixels.

    Text of an SVG by matplotlib is glyphs, which are scaled from 100 units.
    """
    return page.evaluate(
        """async smallest => {
            const found = [];
            for (const image of document.querySelectorAll(".corea-figure img")) {
                if (getComputedStyle(image).display === "none") continue;
                const svg = await (await fetch(image.src)).text();
                const width = Number(svg.match(/viewBox="0 0 ([\\d.]+)/)[1]);
                const scales = [...svg.matchAll(/scale\\(([\\d.]+) -[\\d.]+\\)/g)];
                const inside = image.closest("details:not([open])");
                if (inside) inside.open = true;
                const shown = image.getBoundingClientRect().width / width;
                if (inside) inside.open = false;
                const size = 100 * shown * Math.min(...scales.map(scale => Number(scale[1])));
                if (!(size >= smallest)) found.push([image.src, size]);
            }
            for (const text of document.querySelectorAll(".corea-interactive text")) {
                const size = parseFloat(getComputedStyle(text).fontSize);
                if (!(size >= smallest)) found.push([text.textContent, size]);
            }
            return found;
        }""",
        SMALLEST,
    )


def without_words(page):
    """Pictures that say nothing to who cannot see them."""
    return page.evaluate(
        """() => [...document.querySelectorAll("article img, article [role=img], article figure")]
            .filter(picture => picture.matches("figure")
                ? !picture.querySelector("img, [role=img]")
                : !(picture.alt || picture.getAttribute("aria-label") || "").trim())
            .map(picture => picture.outerHTML.slice(0, 200))"""
    )


def weights(page):
    """Bytes that a page and all that it loads take: its own, plotly's and MathJax's."""
    height = page.evaluate("document.documentElement.scrollHeight")
    for top in range(0, height, 4000):  # pictures are loaded when they come near
        page.evaluate("top => scrollTo({top, behavior: 'instant'})", top)
        page.wait_for_timeout(50)
    page.wait_for_load_state("networkidle")
    sizes = page.evaluate(
        """() => ["navigation", "resource"].flatMap(kind => performance.getEntriesByType(kind))
            .map(entry => [entry.name, entry.encodedBodySize])"""
    )
    taken = Counter()
    for name, size in dict(sizes).items():
        part = re.search(r"/_static/(plotly|mathjax)", name)
        taken[part[1] if part else "page"] += size
    return taken


def unfold(page):
    """Open all that is folded."""
    page.evaluate("document.querySelectorAll('article details').forEach(each => each.open = true)")


def leave_samples(page):
    """Leave of folded code and of the rows of tables what stands for the rest, to axe a minute."""
    page.evaluate(
        """() => {
            document.querySelectorAll("article details.above-input")
                .forEach(each => each.open = false);
            document.querySelectorAll("table.corea-table tbody tr:nth-child(n+6)")
                .forEach(row => row.remove());
        }"""
    )


def inaccessible(page, axe, rules=()):
    """Serious faults that axe finds, by all its rules or by some, with the first places of each."""
    options = {"resultTypes": ["violations"], "preload": False}
    if rules:
        options["runOnly"] = rules
    found = axe.run(page, options=options).response["violations"]
    return [
        (
            fault["id"],
            [(node["target"], node["failureSummary"][:300]) for node in fault["nodes"][:4]],
        )
        for fault in found
        if fault["impact"] in {"serious", "critical"}
    ]


def cut_on_paper(page):
    """Tables and figures that stick out of what they stand in, on paper."""
    return page.evaluate(
        """() => {
            const right = document.querySelector("article").getBoundingClientRect().right + 1;
            return [...document.querySelectorAll("article table, article img, article pre")]
                .filter(each => each.getBoundingClientRect().width > 0)
                .filter(each => each.getBoundingClientRect().right > right
                    || each.scrollWidth > each.clientWidth + 1)
                .map(each => [each.outerHTML.slice(0, 100), each.scrollWidth, right]);
        }"""
    )


class Page(HTMLParser):
    """Addresses in a page, which of them are fetched without a click, and its anchors."""

    def __init__(self, text):
        super().__init__()
        self.found, self.fetched, self.anchors = [], [], Counter()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        """Note what a tag links to and what it is called."""
        for name, value in attributes:
            if name == "id" and value:
                self.anchors[value] += 1
            if name in {"href", "src"} and value:
                self.found.append(value)
                if tag != "a" and (name == "src" or tag == "link"):
                    self.fetched.append(value)


def dead_links(book):
    """Links to a file or to an anchor that is not there, and what is fetched from elsewhere."""
    paths = [path for path in book.rglob("*.html") if "_static" not in path.parts]
    pages = {path.as_uri(): Page(path.read_text("utf-8")) for path in paths}
    files = {path.as_uri() for path in book.rglob("*")}
    dead, elsewhere = [], []
    for uri, page in pages.items():
        elsewhere += [f"{uri}: {address}" for address in page.fetched if urlsplit(address).netloc]
        for address in page.found:
            if urlsplit(address).scheme or urlsplit(address).netloc:
                continue
            target = urlsplit(urljoin(uri, address))
            file = target._replace(query="", fragment="").geturl()
            anchors = pages[file].anchors if file in pages else None
            lost = target.fragment and anchors is not None
            if file not in files or (lost and not anchors[unquote(target.fragment)]):
                dead.append(f"{uri}: {address}")
    return dead, elsewhere
