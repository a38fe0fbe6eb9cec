"""The page in a real browser: Debian's Chromium, without a window."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pages import HOSTILE
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.actions.wheel_input import ScrollOrigin
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from ganlab.commands.describe import describe_runs
from ganlab.images.png_bytes import png_of
from ganlab.report import write_before_after, write_index
from ganlab.report.before_after import Enlarged

OPTIONS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebDriver]:
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not chromedriver:
        pytest.skip("no chromium and chromedriver here (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for option in (*OPTIONS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(chromedriver))
    yield browser
    browser.quit()


@pytest.fixture
def page(driver: WebDriver, compared: Path) -> WebDriver:
    """The page of the comparison, fresh, at the size of a desk."""
    return opened(driver, compared / "page.html")


@pytest.fixture
def index(driver: WebDriver, compared: Path) -> WebDriver:
    """The page over all runs, of which one has no score."""
    entries = describe_runs(compared / "runs")
    entries[1] |= {"scores": {}}
    return opened(driver, write_index(compared / "runs", entries))


def opened(driver: WebDriver, file: Path) -> WebDriver:
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    driver.set_window_size(1280, 900)
    driver.get(file.as_uri())
    return driver


TRANSFORMS = """
return [...document.querySelectorAll('.row img')].map(image => {
  const m = new DOMMatrix(getComputedStyle(image).transform);
  const box = image.parentElement.getBoundingClientRect(); // offsetWidth is rounded
  return [m.a, m.e / box.width, m.f / box.height].map(n => n.toFixed(3)).join(' ');
});
"""


def transforms(page: WebDriver) -> set[str]:
    """How the pictures are zoomed and moved, in parts of their sides: one value when all alike."""
    return set(page.execute_script(TRANSFORMS))


def views(page: WebDriver) -> list[Any]:
    return page.find_elements(By.CSS_SELECTOR, ".row .view")


def test_the_console_has_no_error_and_no_alert_was_raised(page: WebDriver) -> None:
    assert page.get_log("browser") == []  # an alert would have made the command before fail
    assert page.title.startswith("plain and <img")
    assert page.execute_script("return document.querySelectorAll('script').length") == 1


def test_hostile_names_are_read_as_they_are(page: WebDriver) -> None:
    text = page.find_element(By.TAG_NAME, "body").text
    assert "<img src=x onerror=alert(1)>" in text
    assert "<script>alert(2)<script>" in text
    assert page.execute_script("return document.images.length") == 2 * (5 + 2)


def test_every_picture_is_decoded(page: WebDriver) -> None:
    sizes = page.execute_script("return [...document.images].map(i => i.naturalWidth)")
    assert min(sizes) > 0


@pytest.mark.parametrize(
    "zoom",
    [
        lambda page: page.execute_script(
            "arguments[0].dispatchEvent(new WheelEvent('wheel', {deltaY: -1, ctrlKey: true}))",
            views(page)[1],
        ),
        lambda page: views(page)[2].send_keys("+"),
        lambda page: page.find_element(By.CSS_SELECTOR, "[data-zoom=in]").click(),
    ],
    ids=["wheel", "keyboard", "button"],
)
def test_zoom_is_the_same_in_all_pictures(
    page: WebDriver, zoom: Callable[[WebDriver], None]
) -> None:
    (before,) = transforms(page)
    zoom(page)
    (after,) = transforms(page)
    assert after != before
    page.find_element(By.CSS_SELECTOR, "[data-zoom=reset]").click()
    assert transforms(page) == {before}


def test_dragging_one_picture_moves_all_as_far_as_the_pointer(page: WebDriver) -> None:
    view = views(page)[0]
    for _ in range(4):
        view.send_keys("+")
    (before,) = transforms(page)
    drag = ActionChains(page).move_to_element(view).click_and_hold()
    for _ in range(6):  # a browser that takes it for the dragging of an image ends it at the second
        drag = drag.move_by_offset(5, 0)
    drag.release().perform()
    (after,) = transforms(page)
    shift = [float(transform.split()[1]) * view.size["width"] for transform in (before, after)]
    assert shift[1] - shift[0] == pytest.approx(30, abs=2)


def test_a_wheel_scrolls_the_page_until_a_picture_is_zoomed(page: WebDriver) -> None:
    view = views(page)[0]
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", view)
    place = "return window.scrollY"
    top = page.execute_script(place)
    wheel = ScrollOrigin.from_element(view)
    ActionChains(page).scroll_from_origin(wheel, 0, 200).perform()
    WebDriverWait(page, 5).until(lambda _: page.execute_script(place) > top + 198)  # smoothly
    view.send_keys("+")
    top, (before,) = page.execute_script(place), transforms(page)
    ActionChains(page).scroll_from_origin(ScrollOrigin.from_element(view), 0, -100).perform()
    assert page.execute_script(place) == top
    assert transforms(page) != {before}


def test_a_finger_scrolls_the_page_over_pictures(page: WebDriver) -> None:
    ways = (
        "return [...document.querySelectorAll('.view')].map(e => getComputedStyle(e).touchAction)"
    )
    assert set(page.execute_script(ways)) == {"pan-y"}
    views(page)[0].send_keys("+")
    assert page.execute_script(ways)[0] == "none"


def slide(page: WebDriver) -> WebElement:
    """Open the slider of the first image."""
    slider = page.find_element(By.CSS_SELECTOR, ".slider")
    slider.find_element(By.TAG_NAME, "summary").click()
    return slider


def test_dragging_on_the_pair_moves_its_cut_and_zoom_holds_there_too(page: WebDriver) -> None:
    slide(page)
    pair = page.find_element(By.CSS_SELECTOR, ".slider .pair")
    drag = ActionChains(page).move_to_element(pair).click_and_hold()
    for _ in range(4):
        drag = drag.move_by_offset(10, 0)
    drag.release().perform()
    width = pair.size["width"]
    cut = page.execute_script(
        "return getComputedStyle(arguments[0]).getPropertyValue('--cut')", pair
    )
    assert float(cut.strip("% ")) == pytest.approx(50 + 100 * 40 / width, abs=2)
    views(page)[0].send_keys("+")
    (zoomed,) = transforms(page)
    inside = (
        "return new DOMMatrix(getComputedStyle(arguments[0].querySelector('.over')).transform).a"
    )
    assert page.execute_script(inside, pair) == pytest.approx(float(zoomed.split()[0]), abs=1e-3)


def test_arrows_move_a_zoomed_picture_and_0_shows_the_whole(page: WebDriver) -> None:
    (whole,) = transforms(page)
    view = views(page)[0]
    view.send_keys("+")
    (zoomed,) = transforms(page)
    view.send_keys(Keys.ARROW_RIGHT)
    (moved,) = transforms(page)
    assert len({whole, zoomed, moved}) == 3
    view.send_keys("0")
    assert transforms(page) == {whole}


def test_the_slider_moves_the_cut_and_shows_the_chosen_pictures(page: WebDriver) -> None:
    slider = slide(page)
    over = slider.find_element(By.CSS_SELECTOR, ".over")
    top = slider.find_element(By.CSS_SELECTOR, ".top")
    cut = "return getComputedStyle(arguments[0]).clipPath"
    before = page.execute_script(cut, top)
    slider.find_element(By.CSS_SELECTOR, "input").send_keys(Keys.ARROW_RIGHT * 20)
    after = page.execute_script(cut, top)
    assert (before, after) == ("inset(0px 0px 0px 50%)", "inset(0px 0px 0px 70%)")
    source = over.get_attribute("src")
    slider.find_element(By.CSS_SELECTOR, ".right").send_keys("LR")
    assert over.get_attribute("src") != source


TOO_WIDE = """
const room = document.documentElement.clientWidth;
if (document.documentElement.scrollWidth <= room) return [];
return [...document.querySelectorAll('body *')].filter(
  e => e.getBoundingClientRect().right > room + 1 && !e.closest('.scroll, pre')
).map(e => e.tagName + ' ' + e.className);
"""


@pytest.mark.parametrize("width", [360, 414])
def test_a_phone_scrolls_tables_and_not_the_page(page: WebDriver, width: int) -> None:
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 740, "deviceScaleFactor": 2, "mobile": True},
    )
    assert page.execute_script(TOO_WIDE) == []


CONTRASTS = """
const lum = c => { const v = c.match(/[\\d.]+/g).slice(0, 3).map(x => x / 255)
  .map(x => x <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4);
  return .2126 * v[0] + .7152 * v[1] + .0722 * v[2]; };
const back = lum(getComputedStyle(document.body).backgroundColor);
return ['body', '.quiet', 'a', 'summary', 'th', '.tick', '.readout'].flatMap(s => {
  const e = document.querySelector(s); if (!e) return [];
  const style = getComputedStyle(e), c = lum(s === '.tick' ? style.fill : style.color);
  return [[s, (Math.max(c, back) + .05) / (Math.min(c, back) + .05)]]; });
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_in_dark(page: WebDriver, scheme: str) -> None:
    page.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
    )
    paper = page.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
    found = dict(page.execute_script(CONTRASTS))
    assert len(found) == 7
    assert {name: ratio for name, ratio in found.items() if ratio < 4.5} == {}


FOCUSED = """
const e = document.activeElement;
return e.tagName + ' ' + (e.className.baseVal ?? e.className);
"""


def test_the_keyboard_alone_reaches_links_pictures_and_slider(page: WebDriver) -> None:
    slide(page)
    page.find_element(By.TAG_NAME, "body").click()
    reached = set()
    for _ in range(150):
        ActionChains(page).send_keys(Keys.TAB).perform()
        reached.add(page.execute_script(FOCUSED).strip())
    assert {"A", "DIV view", "INPUT", "SELECT left", "BUTTON", "svg", "SUMMARY"} <= reached
    outline = "return getComputedStyle(document.activeElement).outlineStyle"
    assert page.execute_script(outline) != "none"


def test_a_curve_tells_its_values_to_pointer_and_keys(page: WebDriver) -> None:
    chart = page.find_element(By.CSS_SELECTOR, "#curves svg")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", chart)
    ActionChains(page).move_to_element(chart).perform()
    readout = page.find_element(By.CSS_SELECTOR, "#curves .readout")
    assert "iteration" in readout.text
    before = readout.text
    chart.send_keys(Keys.ARROW_RIGHT)
    assert readout.text != before


def test_without_scripts_the_page_reads_the_same(page: WebDriver, compared: Path) -> None:
    page.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    page.get((compared / "page.html").as_uri())
    body = page.find_element(By.TAG_NAME, "body")
    assert "Image by image" in body.text
    assert all(
        picture.is_displayed() for picture in page.find_elements(By.CSS_SELECTOR, ".row img")
    )
    assert not page.find_element(By.CSS_SELECTOR, ".slider").is_displayed()
    assert not page.find_element(By.CSS_SELECTOR, ".controls").is_displayed()
    assert page.find_elements(By.CSS_SELECTOR, "circle title")


@pytest.fixture
def enlarged(driver: WebDriver, tmp_path: Path) -> WebDriver:
    """The page of two enlarged pictures, one of them with its original."""
    files = [png_of(torch.full((3, 300, 512), shade, dtype=torch.uint8)) for shade in (0, 99, 255)]
    versions = [
        *zip(("bicubic", "generator", "original"), files, ("psnr_y 31.25", "", ""), strict=True)
    ]
    pictures = [Enlarged(HOSTILE, 512, 300, versions), Enlarged("b.png", 512, 300, versions[:2])]
    page = tmp_path / "compare.html"
    write_before_after(page, "Before and after", "Enlarged x4", ["a note"], pictures, 512)
    return opened(driver, page)


def test_before_and_after_slide_at_once_on_desk_and_phone(enlarged: WebDriver) -> None:
    assert enlarged.get_log("browser") == []
    size = {"width": 390, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    for width in (None, 390):
        if width:
            enlarged.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        assert enlarged.execute_script(TOO_WIDE) == []
        pairs = enlarged.find_elements(By.CSS_SELECTOR, ".slider .pair")
        assert [pair.is_displayed() for pair in pairs] == [True, True]
        shown = pairs[0].find_elements(By.TAG_NAME, "img")
        assert [image.get_attribute("alt").rpartition(", ")[2] for image in shown] == [
            "bicubic", "generator",
        ]  # fmt: skip
    views(enlarged)[0].send_keys("+")
    assert transforms(enlarged) == {"1.500 -0.250 -0.250"}


VALUES = """
const column = [...document.querySelectorAll('.runs thead th')]
  .findIndex(head => head.textContent === arguments[0]);
return [...document.querySelectorAll('.runs tbody tr')].map(r => r.cells[column].dataset.value);
"""


def test_a_click_on_a_head_sorts_the_runs_and_another_turns_them_round(index: WebDriver) -> None:
    assert index.get_log("browser") == []
    for name, number in (("psnr_y", float), ("run", str)):
        head = index.find_element(By.XPATH, f"//thead//button[text()='{name}']")
        orders = []
        for _ in range(2):
            head.click()
            orders.append([v for v in index.execute_script(VALUES, name) if v])
        first, second = orders
        assert first == second[::-1] == sorted(first, key=number, reverse=name == "psnr_y")
        assert len(set(first)) > 1
    assert index.execute_script("return document.querySelectorAll('[aria-sort]').length") == 1


def test_a_run_without_a_score_comes_last_in_both_directions(index: WebDriver) -> None:
    head = index.find_element(By.XPATH, "//thead//button[text()='psnr_y']")
    for _ in range(2):
        head.click()
        assert [v == "" for v in index.execute_script(VALUES, "psnr_y")] == [False] * 3 + [True]


def test_the_index_fits_a_phone_and_its_keyboard_sorts(index: WebDriver) -> None:
    size = {"width": 390, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    index.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    assert index.execute_script(TOO_WIDE) == []
    assert index.execute_script("return document.querySelector('.scroll').scrollWidth") <= 390
    index.find_element(By.XPATH, "//thead//button[text()='seed']").send_keys(Keys.ENTER)
    assert index.execute_script(VALUES, "seed") == ["0", "0", "1", "1"]
