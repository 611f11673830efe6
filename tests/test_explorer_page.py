"""The explorer in a browser: on a page without a kernel, by mouse and keyboard; and live in Voilà, there and back."""

import json
from pathlib import Path
from urllib.parse import urlencode

import browser
import nbformat
import numpy as np
import pytest
from test_explorer import FIRST, SECOND, Counted, record

import medmerge

ROOT = Path(__file__).resolve().parents[1]
CONV, DENSE, LAST = "features.conv0", "features.denseblock1.denselayer1.conv1", "features.transition1.conv"


@pytest.fixture(scope="module")
def driver():
    driver = browser.start()
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with a page of three runs in two studies, one of them of another network, and its records."""
    folder = tmp_path_factory.mktemp("site")
    other = {"conv1": np.float32([0.3, 0.52, 0.7]), "fc": np.float32([0.5, 0.45])}
    records = [record(folder, 0), record(folder, 1), record(folder, 0, "eyes", 0, other, "elsewhere")]
    shown = medmerge.explore(records, trials={records[0].folder: Counted()}, layer=CONV)
    for w in (None, 1.0):
        shown.try_weights(w)
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><title>Explorer</title><link rel="icon" href="data:,">'
    (folder / "page.html").write_text(f"{head}<body><h1>Page</h1><h2>Part</h2>{shown.html()}", encoding="utf-8")
    with browser.serving(folder) as address:
        yield folder, records, {"http": f"{address}/page.html", "file": (folder / "page.html").as_uri()}


@pytest.fixture(params=["http", "file"])
def page(request, driver, site):
    """The page, fresh, by either way of reaching it; nothing was blocked, missing or wrong while it was used."""
    driver.get("about:blank")
    browser.complaints(driver)
    driver.get(site[2][request.param])
    yield Page(driver)
    assert not browser.complaints(driver)


class Page:
    """What a reader does and sees."""

    def __init__(self, driver, ready: str = "page", timeout: float = 30):
        from selenium.webdriver.support.wait import WebDriverWait

        self.driver, self.wait = driver, WebDriverWait(driver, timeout)
        self.wait.until(lambda d: self.all(f".mm-explorer[data-ready={ready}] canvas"))

    def all(self, selector: str) -> list:
        return self.driver.find_elements("css selector", selector)

    def one(self, selector: str):
        (found,) = self.all(selector)
        return found

    def text(self, selector: str) -> str:
        (text,) = self.texts(selector)
        return text

    def texts(self, selector: str) -> list[str]:
        """Read at one moment: what is shown may be replaced at the next."""
        script = "return [...document.querySelectorAll(arguments[0])].map((element) => element.innerText.trim())"
        return self.driver.execute_script(script, selector)

    def choose(self, key: str, value: str):
        from selenium.webdriver.support.select import Select

        Select(self.one(f"[data-mm={key}]")).select_by_value(value)

    def press(self, *keys: str):
        from selenium.webdriver import ActionChains, Keys

        for key in keys:
            ActionChains(self.driver).send_keys(getattr(Keys, key)).perform()

    def focus(self, selector: str, backwards: bool = False, limit: int = 60):
        """Tab until the element has the focus: by keyboard alone."""
        for _ in range(limit):
            if self.driver.execute_script("return document.activeElement.matches(arguments[0])", selector):
                return
            self.press("TAB")
        raise AssertionError(f"the Tab key does not reach {selector}")

    def point(self, selector: str, x: float, y: float, click: bool = False):
        """Move the mouse to a share of an element's width and height."""
        from selenium.webdriver import ActionChains

        element = self.one(selector)
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        size = element.rect
        moved = ActionChains(self.driver).move_to_element_with_offset(
            element, round((x - 0.5) * size["width"]), round((y - 0.5) * size["height"])
        )
        (moved.click() if click else moved).perform()

    def pixels(self, selector: str) -> str:
        return self.driver.execute_script("return arguments[0].toDataURL()", self.one(selector))

    def statistics(self) -> dict[str, str]:
        rows = self.all(".mm-statistics tr")
        return {r.find_element("tag name", "th").text: r.find_element("tag name", "td").text for r in rows}

    @property
    def status(self) -> str:
        return self.text(".mm-status")


def written(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}f}".replace("-", "−")


def test_first_view_shows_the_records_numbers(page, site):
    w = site[1][0].kernel_weights[CONV]
    shown = page.statistics()
    assert shown["mean"] == written(w.mean()) and shown["median"] == written(np.median(w))
    assert shown["5 %"] == written(np.quantile(w, 0.05)) and shown["standard deviation"] == written(w.std(ddof=1))
    assert shown["weight"] == "24 × 3 × 7 × 7" and shown["kind"] == "7×7 convolution"
    assert page.status.startswith(f"Layer 1 of 3, {CONV}, 7×7 convolution, 6 kernels: mean w {written(w.mean())}")
    assert page.text(".mm-legend").startswith("← more clinic") and page.text(".mm-legend").endswith("more ImageNet →")
    flat = np.concatenate(list(site[1][0].kernel_weights.values()))
    assert page.texts(".mm-strongest table:first-child td:last-child")[0] == written(flat.max())
    assert f"record open/{FIRST}" in page.text(".mm-facts")
    assert not page.all(".mm-explorer > .mm-scroll"), "the table for readers without scripts gave way"


def test_by_mouse(page, site):
    before = page.pixels(".mm-map")
    page.choose("layer", DENSE)
    assert page.status.startswith(f"Layer 2 of 3, {DENSE}") and page.pixels(".mm-map") == before
    assert page.text(".mm-title") == f"Layer 2 of 3: {DENSE}"
    page.point(".mm-map", 0.95, 0.5)
    assert page.text(".mm-readout").startswith(f"3: {LAST}")
    assert page.status.startswith("Layer 2 of 3"), "hovering chooses nothing"
    page.point(".mm-map", 0.95, 0.5, click=True)
    assert page.status.startswith(f"Layer 3 of 3, {LAST}")
    w = site[1][0].kernel_weights[LAST]
    page.point(".mm-slider:not(:has(.mm-map)) canvas", 0.5, 0.5, click=True)
    side = "ImageNet" if w[2] > 0.5 else "clinic"
    assert page.status.endswith(f"; kernel 2: w {written(w[2])}, more {side}.")
    page.all(".mm-strongest button")[0].click()
    flat = np.concatenate(list(site[1][0].kernel_weights.values()))
    assert f"w {written(flat.max())}, more ImageNet." in page.status


def test_by_keyboard(page, site):
    from selenium.webdriver import ActionChains

    page.focus("[data-mm=layer]")
    assert page.driver.execute_script("return getComputedStyle(document.activeElement).outlineWidth") == "3px"
    ActionChains(page.driver).send_keys("2").perform()
    assert page.status.startswith(f"Layer 2 of 3, {DENSE}")
    page.focus(".mm-slider:has(.mm-map)")
    page.press("ARROW_RIGHT")
    assert page.status.startswith("Layer 3 of 3")
    page.press("ARROW_RIGHT", "HOME")
    assert page.status.startswith("Layer 1 of 3")
    slider = page.one(".mm-slider:has(.mm-map)")
    assert slider.get_attribute("aria-valuenow") == "0" and CONV in slider.get_attribute("aria-valuetext")
    assert page.one(".mm-status").get_attribute("aria-live") == "polite"
    page.focus(".mm-slider:not(:has(.mm-map))")
    w = site[1][0].kernel_weights[CONV]
    page.press("ARROW_RIGHT", "ARROW_RIGHT")
    assert f"kernel 1: w {written(w[1])}" in page.status
    page.press("END")
    assert f"kernel 5: w {written(w[5])}" in page.status
    page.press("ESCAPE")
    assert "; kernel" not in page.status
    page.focus(".mm-strongest button")
    page.press("ENTER")
    assert "; kernel " in page.status
    assert page.driver.execute_script("return document.activeElement.tagName") == "BUTTON", "the focus stays"


def test_epochs_are_stepped_through(page, site):
    before = page.pixels(".mm-map")
    page.focus("[data-mm=epoch]")
    assert page.text(".mm-epoch output") == "as learnt (epoch 2)"
    page.press("HOME", "ARROW_RIGHT")
    assert page.text(".mm-epoch output") == "after epoch 2"
    epochs, history = site[1][0].kernel_history
    assert page.statistics()["mean"] == written(history[CONV][list(epochs).index(2)].mean())
    assert page.pixels(".mm-map") != before
    page.press("END")
    assert page.pixels(".mm-map") == before


def test_noise_is_beside_it_and_the_guided_start_says_what_to_see(page, site):
    own, shuffled = page.pixels(".mm-map"), page.pixels(".mm-map-other")
    assert own != shuffled and page.texts(".mm-tour [aria-pressed=true]") == ["1 Learnt, and shuffled"]
    page.choose("order", "w")
    assert page.pixels(".mm-map") == page.pixels(".mm-map-other"), "sorted, a shuffle draws the same picture"
    first, second, limit, worth = page.all(".mm-tour button")
    second.click()
    assert page.pixels(".mm-map") == own, "the kernels are in their own order again"
    a, b = (np.concatenate(list(r.kernel_weights.values())) for r in site[1][:2])
    assert f"over all kernels the two correlate at {written(np.corrcoef(a, b)[0, 1], 2)}" in page.text(".mm-note")
    limit.click()
    assert "here ±0.01." in page.text(".mm-note") and "at ±0.01 of 0.5: w’s budget" in page.text(".mm-limits")
    worth.click()
    for part in ("with w as learnt is 0.600", "back at 0.5 0.590", "shuffled within layers 0.590"):
        assert part in page.text(".mm-note")
    assert page.texts(".mm-scores tbody tr:last-child td")[1:] == ["0.590", "−0.010", "0.550"]
    assert not page.one(".mm-map-other").is_displayed()
    first.click()
    assert page.pixels(".mm-map-other") == shuffled


def test_the_page_shuffles_as_python_does(page, site):
    shuffled = medmerge.explore(site[1][0], layer=LAST).data()["other"]
    page.choose("layer", LAST)
    pairs = np.corrcoef(site[1][0].kernel_weights[LAST], shuffled)[0, 1]
    assert page.texts(".mm-comparison tbody tr:first-child td")[0] == written(pairs, 2)


def test_two_runs_are_compared(page, site):
    before = page.pixels(".mm-map")
    page.choose("compare", SECOND)
    a, b = (np.concatenate(list(r.kernel_weights.values())) for r in site[1][:2])
    rows = [
        [c.text for c in row.find_elements("css selector", "th, td")] for row in page.all(".mm-comparison tbody tr")
    ]
    assert rows[1][:4] == [
        *("all kernels", written(np.corrcoef(a, b)[0, 1], 2), f"{(a - b).mean():+.3f}".replace("-", "−")),
        written(np.abs(a - b).mean()),
    ]
    assert page.pixels(".mm-map") == before
    page.choose("view", "difference")
    difference = site[1][0].kernel_weights[CONV] - site[1][1].kernel_weights[CONV]
    assert page.statistics()["mean"] == written(difference.mean()) and page.pixels(".mm-map") != before
    assert page.text(".mm-legend").startswith("← this run takes more clinic")
    page.choose("seed", "1")
    assert page.text(".mm-run").endswith("seed 1")
    assert page.one("[data-mm=compare]").get_attribute("value") == "shuffled"
    page.choose("compare", "")
    assert page.texts("[data-mm=view] option") == ["w, on all runs’ scale", "w, on its own scale"]
    assert not page.one(".mm-compared").is_displayed()
    assert not page.one(".mm-map-other").is_displayed()


def test_what_needs_a_kernel_is_not_there(page):
    assert page.one(".mm-trial").is_displayed() and "Counted" not in page.text(".mm-trial")
    assert [
        [c.text for c in row.find_elements("css selector", "th, td")] for row in page.all(".mm-trial tbody tr")
    ] == [
        ["every layer", "as learnt", "0.600", ""],
        [CONV, "1: all ImageNet", "0.600", "0.000"],
    ]
    assert not page.all(".mm-trial button")


def test_a_view_has_an_address(page, driver):
    page.choose("layer", LAST)
    page.choose("compare", SECOND)
    link = page.one(".mm-tip a").get_attribute("href")
    assert driver.current_url == link
    driver.get("about:blank")
    driver.get(link)
    again = Page(driver)
    assert again.status.startswith(f"Layer 3 of 3, {LAST}") and "seed 1" in again.text(".mm-limits")
    wanted = urlencode({"layer": DENSE, "kernel": 3, "run": SECOND, "epoch": 1})
    driver.execute_script("location.hash = arguments[0]", f"explorer&{wanted}")
    again.wait.until(lambda _: again.status.startswith("Layer 2 of 3"))
    assert "kernel 3: " in again.status and again.text(".mm-epoch output") == "after epoch 1"
    driver.execute_script("location.hash = 'explorer&layer=nowhere&kernel=x&epoch=77'")
    again.wait.until(lambda _: again.status.startswith("Layer 1 of 3"))


def test_light_dark_narrow_and_print(page, driver):
    def paper() -> tuple[str, str]:
        return tuple(
            driver.execute_script(
                "const style = getComputedStyle(document.querySelector('.mm-explorer'));"
                "return [style.color, style.backgroundColor]"
            )
        )

    light = paper()
    driver.execute_script("document.documentElement.dataset.theme = 'dark'")
    assert paper() != light and paper()[0] == "rgb(230, 230, 230)"
    driver.execute_script("delete document.documentElement.dataset.theme")
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    )
    try:
        page.choose("compare", SECOND)
        wide = (
            "return [...document.querySelectorAll('.mm-explorer *')].filter((e) => !e.closest('.mm-scroll')"
            " && e.getBoundingClientRect().right > innerWidth).map((e) => e.className)"
        )
        assert driver.execute_script(wide) == []
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
        assert not page.one(".mm-step").is_displayed() and page.one(".mm-map").is_displayed()
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_without_scripts_there_is_a_table(driver, site):
    driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        driver.get(site[2]["http"])
        rows = [row.text for row in driver.find_elements("css selector", ".mm-explorer tbody tr")]
        w = np.concatenate(list(site[1][0].kernel_weights.values()))
        assert len(rows) == 3 and f"moles a small DenseNet MedMerge ImageNet + clinic 0 15 {w.mean():.3f}" in rows[0]
    finally:
        driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


LIVE = """
import json
from pathlib import Path
import medmerge
from medmerge.study import records

class Trial:
    metric, images = "macro F1", 120
    def __call__(self, layer, w):
        return 0.6 if w is None else 0.5 + w / 10

runs = records.merged(Path("open"), ["moles"])
explorer = medmerge.explore(runs, trials={runs[0].folder: Trial()})

def seen(change):
    shown = explorer.data()
    Path("seen.json").write_text(json.dumps({"selection": explorer.selection, "w": shown["w"].tolist()}))
    if explorer.selection["kernel"] == 3:
        explorer.selection = {"layer": "features.transition1.conv"}

explorer.observe(seen, names="selection")
explorer
"""


@pytest.mark.slow
def test_live_a_choice_reaches_python_and_back(driver, site, tmp_path):
    folder = site[0]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(LIVE)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, folder / "live.ipynb")
    environment = {
        name: str(tmp_path / name.lower()) for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR")
    }
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def heard() -> dict:
        path = folder / "seen.json"
        try:
            return json.loads(path.read_text())
        except (FileNotFoundError, ValueError):  # not yet, or half written
            return {"selection": {}}

    with browser.voila(folder / "live.ipynb", environment) as address:
        driver.get(address)
        page = Page(driver, "live", timeout=180)
        driver.execute_script("document.addEventListener('keydown', (event) => { window.past = event.key; })")
        page.focus("[data-mm=order]")
        page.press("ESCAPE")
        assert driver.execute_script("return window.past") != "Escape", "JupyterLab's shortcuts do not see it"
        page.choose("layer", DENSE)
        page.wait.until(lambda _: heard()["selection"].get("layer") == DENSE)
        assert heard()["w"] == pytest.approx(site[1][0].kernel_weights[DENSE].tolist())
        page.focus(".mm-slider:not(:has(.mm-map))")
        page.press("END")  # kernel 3, to which Python answers with another layer
        page.wait.until(lambda _: page.status.startswith(f"Layer 3 of 3, {LAST}"))
        assert page.texts(".mm-trial button") == ["0: all clinic", "0.5: half each", "1: all ImageNet", "as learnt"]
        page.one(".mm-trial button[data-w='1']").click()
        page.wait.until(lambda _: "macro F1 0.600" in page.text(".mm-trial [role=status]"))
        assert page.texts(".mm-trial tbody :is(th, td)")[:3] == [LAST, "1: all ImageNet", "0.600"]
        assert "#" not in driver.current_url, "the notebook's own address is left alone"
        driver.get("about:blank")
