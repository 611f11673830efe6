"""Every page of the built book, as a reader's browser shows it: alone, by links, on a phone, by keyboard, in the dark.

These look at `_build/html`, so `make book` comes first; they skip (in CI: fail) where it is absent or out of date. What
depends on letters' widths is looked at with two families of fonts, each the only one that the browser sees.
"""

import gzip
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlparse

import pytest
from book_fixtures import CONFIG, HTML, ROOT, pages, stale
from browser import FONTS, SMALL, fontconfig, requests, serving, skip_or_fail, start
from selenium.webdriver.support.ui import WebDriverWait

AXE = (ROOT / "tests" / "vendor" / "axe.min.js").read_text(encoding="utf-8")
PHONE = 390
REPOSITORY = CONFIG["repository"]["url"]
OWNER = re.escape(REPOSITORY.removeprefix("https://github.com/"))


@pytest.fixture(scope="module")
def book():
    if reason := stale():
        skip_or_fail(reason)
    return HTML


@pytest.fixture(scope="module")
def site(book):
    with serving(book) as address:
        yield f"{address}/"


@pytest.fixture(scope="module")
def browser():
    driver = start()
    yield driver
    driver.quit()


@pytest.fixture(scope="module", params=FONTS)
def lettered(request, tmp_path_factory):
    """A browser that sees one family of fonts, and the theme to look at pages in: colours know no font."""
    driver = start(fonts=fontconfig(request.param, tmp_path_factory.mktemp("fonts")))
    yield driver, "light" if request.param == "DejaVu" else "dark"
    driver.quit()


def resize(browser, width: int) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def test_every_page_is_listed(book):
    built = {str(path.relative_to(book)) for path in book.rglob("*.html") if "_static" not in path.parts}
    gone = {f"{old}.html" for old in CONFIG["sphinx"]["config"]["redirects"]}
    assert built == {*pages(), "index.html", *gone}


def test_the_status_page_lists_every_record_and_every_parameter_file(book):
    page = (book / "results" / "demo" / "status.html").read_text(encoding="utf-8")
    runs = [json.loads(path.read_text()) for path in ROOT.glob("results/*/*/*/*/seed*/run.json")]
    assert runs and not [run["row"] for run in runs if run["hash"][:8] not in page]
    assert not [
        path.name for path in ROOT.glob("params/*/*.yaml") if f"/params/{path.parent.name}/{path.name}" not in page
    ]


def local(url: str) -> Path:
    """The file behind an address of the served book."""
    return HTML / unquote(urlparse(url).path).lstrip("/")


def sent(path: Path) -> int:
    """Bytes that a server sends of a file: text compressed, fonts and pictures as they are."""
    return (
        len(gzip.compress(path.read_bytes()))
        if path.suffix in (".html", ".css", ".js", ".svg")
        else path.stat().st_size
    )


def test_the_landing_page_answers_on_its_first_screen_and_is_light(browser, site):
    """The question, the answer and its picture; how sure and whether to use it follow at once."""
    resize(browser, 1280)
    requests(browser)
    browser.get(site + "book/index.html")
    script = "return [...document.querySelectorAll('main strong, main figure')]"
    script += ".map(s => [s.tagName == 'FIGURE' ? 'figure' : s.innerText, s.getBoundingClientRect().top])"
    tops = browser.execute_script(script)
    names = [name for name, _ in tops]
    answer = next(name for name in names if name in ("Not in our tests.", "Yes, on our data.", "We cannot tell yet."))
    order = ["Does it work?", answer, "figure", "How sure?", "Should I use it?", "What this is not."]
    assert [name for name in names if name in order] == order
    assert dict(tops)["figure"] < 420
    weights = {path: sent(path) for path in [*map(local, requests(browser))]}
    assert len(weights) > 9 and sum(weights.values()) < 600_000, weights


def test_pages_that_are_gone_lead_to_what_took_their_place(browser, site):
    for old, new in CONFIG["sphinx"]["config"]["redirects"].items():
        browser.get(f"{site}{old}.html")
        there = urljoin(f"{site}{old}.html", new)
        WebDriverWait(browser, 10).until(lambda b, there=there: b.current_url == there)
        assert browser.execute_script("return document.querySelectorAll('article h1').length") == 1


# ---------------------------------------------------------------- links


class Page(HTMLParser):
    """Links of a page, and the places in it that a link can lead to."""

    def __init__(self, html: str):
        super().__init__()
        self.links: list[str] = []
        self.places: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        self.places += [given[name] for name in ("id", "name") if given.get(name)]


@pytest.fixture(scope="module")
def parsed(book):
    return {path: Page((book / path).read_text(encoding="utf-8")) for path in [*pages(), "index.html"]}


def broken(parsed, path: str) -> list[str]:
    """Links of a page within the book that lead nowhere."""
    found = []
    for link in parsed[path].links:
        target = urlparse(urljoin(f"file:///{path}", link))
        if target.scheme != "file":
            continue
        where, place = unquote(target.path).lstrip("/"), unquote(target.fragment)
        if where in parsed:
            if place and place not in parsed[where].places:
                found.append(link)
        elif not (HTML / where).is_file():
            found.append(link)
    return found


@pytest.mark.parametrize("path", pages())
def test_links_within_the_book_lead_somewhere(parsed, path):
    assert not broken(parsed, path)


def test_a_broken_link_is_found(book):
    parsed = {"a/b.html": Page("<a href='c.html#there'>c</a><a href='#no'>b</a>"), "a/c.html": Page("<p id='here'>")}
    assert broken(parsed, "a/b.html") == ["c.html#there", "#no"]


@pytest.mark.parametrize("path", pages())
def test_ids_are_unique(book, path):
    ids = re.findall(r'\sid="([^"]+)"', (book / path).read_text(encoding="utf-8"))
    assert len(ids) == len(set(ids)), sorted({one for one in ids if ids.count(one) > 1})


@pytest.mark.parametrize("path", pages())
def test_links_into_the_repository_name_what_is_there(parsed, path):
    """Source, edit and launch links; the demo's pages have none, since its notebooks are in no repository."""
    into = re.compile(
        rf"{re.escape(REPOSITORY)}/(?:blob|edit|tree)/main/([^#?]+)"
        rf"|https://colab\.research\.google\.com/github/{OWNER}/blob/main/(.+)"
        rf"|https://mybinder\.org/v2/gh/{OWNER}/main\?urlpath=lab/tree/(.+)"
    )
    named = [match[1] or match[2] or match[3] for match in map(into.match, parsed[path].links) if match]
    assert not [name for name in named if not (ROOT / unquote(name)).exists()]
    if path.startswith("results/"):
        assert named.count(path.replace(".html", ".ipynb")) == (0 if "/demo/" in path else 3)  # edit, Binder, Colab
    elif path != "search.html":
        assert path.replace(".html", ".md") in named


# ---------------------------------------------------------------- a browser


def test_search_finds_pages_without_a_network(browser, site):
    browser.get(site + "search.html?q=bootstrap")
    found = "return [...document.querySelectorAll('#search-results li a')].map(a => new URL(a.href).pathname.slice(1))"
    WebDriverWait(browser, 20).until(lambda b: "book/glossary.html" in b.execute_script(found))
    assert set(browser.execute_script(found)) <= set(pages())


@pytest.mark.parametrize("path", pages())
def test_page_in_a_browser(lettered, site, path):
    """It asks nobody else for anything, everybody can read it, and on a phone nothing sticks out or is out of reach."""
    browser, theme = lettered
    resize(browser, 1280)
    browser.get_log("browser")
    requests(browser)
    browser.get(site + path)
    browser.execute_script(THEME, theme)
    assert not violations(browser)
    resize(browser, PHONE)
    assert not browser.execute_script(SCROLLS + "return stickingOut()")
    assert not browser.execute_script(SCROLLS + "return outOfReach()")
    assert not browser.execute_script(SMALL)
    asked = requests(browser)
    assert asked[site + path] == "200"
    assert not {url: what for url, what in asked.items() if not url.startswith(site) or what not in {"200", "304"}}
    assert not [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert any("tex-svg" in url for url in asked) == ('class="math' in (HTML / path).read_text(encoding="utf-8"))


THEME = """
document.head.append(Object.assign(document.createElement("style"), {textContent: "* {transition: none !important}"}));
document.documentElement.dataset.mode = document.documentElement.dataset.theme = arguments[0];
"""

SCROLLS = """
const scrolls = (box) => /auto|scroll/.test(getComputedStyle(box).overflow);
const within = (box) => box && box !== document.body && (scrolls(box) || within(box.parentElement));
const seen = (selector) => [...document.querySelectorAll(selector)].filter((box) => box.checkVisibility());
const told = (boxes) => boxes.slice(0, 9).map((box) => box.outerHTML.slice(0, 120));

function stickingOut() {
  const {scrollWidth, clientWidth} = document.documentElement;
  const edge = (box, side) => box.getBoundingClientRect()[side];
  const wide = (box) => edge(box, "right") > clientWidth + 1 && !/^\\s+$/.test(box.textContent) && !within(box);
  const out = told(seen("main *").filter((box) => wide(box) || edge(box, "left") < -1));  // nothing scrolls to there
  return scrollWidth > clientWidth ? [`the page is ${scrollWidth} px wide`, ...out] : out;
}

/* Whether a box scrolls today is the fonts' affair: one that may must take the focus and say what it is. A sidebar
   holds links and nothing else, and each of them can be reached. */
function outOfReach() {
  const takesFocus = (box) => box.getAttribute("tabindex") === "0" && box.role && box.ariaLabel;
  const ofLinks = (box) => box.matches("[class*=bd-sidebar]") && box.querySelector("a[href]");
  return told(seen("body *").filter((box) => scrolls(box) && !takesFocus(box) && !ofLinks(box)));
}
"""


@pytest.mark.parametrize(
    "html, sticks_out, out_of_reach",
    [
        ("<pre style='overflow: auto'>code</pre>", 0, 1),  # it need not scroll yet
        ("<div style='overflow-x: auto' tabindex=0 role=group aria-label=Table><table></table></div>", 0, 0),
        ("<div style='overflow-x: auto; width: 50px'><a href=x>a link at one end</a> of many more words</div>", 0, 1),
        ("<p style='width: 30px'><svg style='margin-left: 380px' width=30 height=9></svg></p>", 2, 0),
        (
            "<div style='overflow: auto' tabindex=0 role=group aria-label=A><p style='margin-left: -30px'>x</p></div>",
            1,
            0,
        ),
        ("<table><tr><td style='white-space: nowrap'>" + 30 * "many words " + "</td></tr></table>", 5, 0),
    ],
)
def test_what_sticks_out_or_is_out_of_reach_is_found(browser, html, sticks_out, out_of_reach):
    resize(browser, PHONE)
    browser.get(f"data:text/html,<meta name=viewport content=width=device-width><main>{html}</main>")
    assert len(browser.execute_script(SCROLLS + "return stickingOut()")) == sticks_out
    assert len(browser.execute_script(SCROLLS + "return outOfReach()")) == out_of_reach


def test_violations_are_found(browser, site):
    browser.get("data:text/html,<html><img src='data:,'><p style='color:%23eee;background:%23fff'>pale</p></html>")
    assert {"image-alt", "color-contrast", "html-has-lang"} <= {name for name, *_ in violations(browser)}


def violations(browser) -> list[tuple]:
    """Serious and critical ones: rule, number of elements, and the first three of them with the reason."""
    browser.execute_script(AXE)
    found = browser.execute_async_script(
        "const done = arguments[0];"
        "axe.run(document, {resultTypes: ['violations']}).then(r => done(r.violations), e => done(String(e)));"
    )
    assert isinstance(found, list), found
    return [
        (one["id"], len(one["nodes"]), [(n["html"][:160], n["failureSummary"][:300]) for n in one["nodes"][:3]])
        for one in found
        if one["impact"] in {"serious", "critical"}
    ]
