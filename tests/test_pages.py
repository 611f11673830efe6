"""Every page of the built book, as a reader's browser shows it: alone, by links, on a phone, in the dark.

These look at `_build/html`, so `make book` comes first; they skip (in CI: fail) where it is absent or out of date.
"""

import json
import re
from html.parser import HTMLParser
from urllib.parse import unquote, urljoin, urlparse

import pytest
from book_fixtures import CONFIG, HTML, ROOT, pages, serve, skip_or_fail, stale, start_driver
from selenium.webdriver.support.ui import WebDriverWait

AXE = (ROOT / "tests" / "vendor" / "axe.min.js").read_text(encoding="utf-8")
PHONE = 390
REPOSITORY = CONFIG["repository"]["url"]
OWNER = re.escape(REPOSITORY.removeprefix("https://github.com/"))

HARMLESS = (
    "THEBE_JS_URL",  # the theme declares it twice
    "invalid theme mode",  # the theme's word for a reader's first visit
)

THEME = """
document.head.append(Object.assign(document.createElement("style"), {textContent: "* {transition: none !important}"}));
document.documentElement.dataset.mode = document.documentElement.dataset.theme = arguments[0];
"""


@pytest.fixture(scope="module")
def book():
    if reason := stale():
        skip_or_fail(reason)
    return HTML


@pytest.fixture(scope="module")
def site(book):
    server = serve(book)
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    driver = start_driver(tmp_path_factory.mktemp("profile"))
    yield driver
    driver.quit()


def show(browser, address: str, width: int = 1280, theme: str = "light") -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(address)
    browser.execute_script(THEME, theme)


def test_every_page_is_listed(book):
    built = {str(path.relative_to(book)) for path in book.rglob("*.html") if "_static" not in path.parts}
    assert built == {*pages(), "index.html"}


def test_the_status_page_lists_every_record_and_every_parameter_file(book):
    page = (book / "book" / "status.html").read_text(encoding="utf-8")
    runs = [json.loads(path.read_text()) for path in ROOT.glob("results/*/*/*/*/seed*/run.json")]
    assert runs and not [run["row"] for run in runs if run["hash"][:8] not in page]
    assert not [
        path.name for path in ROOT.glob("params/*/*.yaml") if f"/params/{path.parent.name}/{path.name}" not in page
    ]


def test_claim_finding_and_certainty_are_on_the_first_screen(browser, site):
    show(browser, site + "book/index.html")
    script = "return [...document.querySelectorAll('main strong')]"
    script += ".map(s => [s.innerText, s.getBoundingClientRect().bottom])"
    low = dict(browser.execute_script(script))
    assert max(low[words] for words in ("The claim.", "What we found so far.", "How sure.")) < 720


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
    """Source, edit and launch links; the demo's pages have none to show, since its notebooks are in no repository."""
    into = re.compile(
        rf"{re.escape(REPOSITORY)}/(?:blob|edit|tree)/main/([^#?]+)"
        rf"|https://colab\.research\.google\.com/github/{OWNER}/blob/main/(.+)"
        rf"|https://mybinder\.org/v2/gh/{OWNER}/main\?urlpath=lab/tree/(.+)"
    )
    named = [match[1] or match[2] or match[3] for match in map(into.match, parsed[path].links) if match]
    assert not [name for name in named if not (ROOT / unquote(name)).exists()]
    if path.startswith("results/"):
        assert named.count(path.replace(".html", ".ipynb")) == 3  # edit, Binder, Colab
    elif path != "search.html":
        assert path.replace(".html", ".md") in named


def test_the_demo_offers_nothing_that_is_in_no_repository(browser, site):
    offered = "return [...document.querySelectorAll('a')].filter(a => /(edit|blob|tree).*\\.ipynb$/.test(a.href)"
    for path, count in (("results/demo/pair.html", 0), ("results/open/skin.html", 3)):
        show(browser, site + path)
        browser.execute_script("for (const b of document.querySelectorAll('.dropdown-menu')) b.classList.add('show')")
        assert browser.execute_script(offered + " && a.checkVisibility()).length") == count


# ---------------------------------------------------------------- a browser without a network


def requests(browser) -> dict[str, str]:
    """What the page asked for since the last call, and what became of it."""
    outcome, addresses = {}, {}
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        name, values = message["method"], message["params"]
        if name == "Network.requestWillBeSent":
            addresses[values["requestId"]] = values["request"]["url"]
            outcome.setdefault(values["request"]["url"], "no answer")
        elif name == "Network.responseReceived":
            outcome[values["response"]["url"]] = str(values["response"]["status"])
        elif name == "Network.loadingFailed" and values["requestId"] in addresses and not values.get("canceled"):
            outcome[addresses[values["requestId"]]] = values["errorText"]
    return {url: what for url, what in outcome.items() if not url.startswith(("data:", "blob:", "chrome"))}


@pytest.mark.parametrize("path", pages())
def test_page_needs_nobody_else(browser, site, path):
    requests(browser)
    browser.get_log("browser")
    show(browser, site + path)
    asked = requests(browser)
    assert asked[site + path] == "200"
    assert not {url: what for url, what in asked.items() if not url.startswith(site) or what not in {"200", "304"}}
    errors = [
        entry["message"] for entry in browser.get_log("browser") if not any(one in entry["message"] for one in HARMLESS)
    ]
    assert not errors


def test_search_finds_pages_without_a_network(browser, site):
    show(browser, site + "search.html?q=bootstrap")
    found = "return [...document.querySelectorAll('#search-results li a')].map(a => new URL(a.href).pathname.slice(1))"
    WebDriverWait(browser, 20).until(lambda b: "book/glossary.html" in b.execute_script(found))
    assert set(browser.execute_script(found)) <= set(pages())


OVERFLOW = """
const wide = [];
for (const box of document.querySelectorAll("main table, main pre, main img, main svg, main dl.py > dt")) {
  if (!box.offsetParent && !(box instanceof SVGElement)) continue;
  let right = box.getBoundingClientRect().right, inside = box;
  while (inside && inside !== document.body) {
    if (["auto", "scroll"].includes(getComputedStyle(inside).overflowX)) break;
    inside = inside.parentElement;
  }
  if (inside === document.body && right > innerWidth + 1) wide.push(box.outerHTML.slice(0, 120));
}
return [document.documentElement.scrollWidth, wide];
"""


@pytest.mark.parametrize("path", pages())
def test_page_fits_a_phone(browser, site, path):
    show(browser, site + path, PHONE)
    width, wide = browser.execute_script(OVERFLOW)
    assert width <= PHONE and not wide


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("path", pages())
def test_page_is_accessible(browser, site, path, theme):
    """axe-core finds no serious or critical violation."""
    show(browser, site + path, theme=theme)
    assert not violations(browser)


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
