"""The page of a run in a real browser, opened from disk: it draws, hovers, filters, sorts and copies, and asks nobody.

Skipped where there is no Chromium (`apt-get install chromium`, or SWEEPER_CHROMIUM=/path/to/chrome).
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from run_samples import NASTY, cost, final_row, final_rows, trial_row, trial_rows, write_full_run

CHROMIUM = os.environ.get("SWEEPER_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
Page = Any


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page whose names are hostile wherever a name can stand."""
    run = write_full_run(tmp_path_factory.mktemp("page") / NASTY.replace("/", "_") / "a1")
    config = {"teacher": NASTY, f"lr{NASTY}": NASTY, "train": {"lr": 0.5}}
    hostile = trial_row(24, teacher=NASTY, student=NASTY, loss=NASTY, config=config)
    run.write_trials([*trial_rows(), hostile, trial_row(25, state="failed", error=NASTY, accuracy_val=float("nan"))])
    run.write_pareto([final_row(1, student=NASTY, loss="</script><script>alert(2)</script>"), *final_rows()[1:]])
    run.write_report()
    return run.path / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any, path: Path) -> Iterator[Page]:
    """The page on a desktop; what went wrong in it, and what it asked for, is looked at when the test is over."""
    yield from _opened(browser, path, viewport=DESKTOP)


def _opened(browser: Any, path: Path, **options: Any) -> Iterator[Page]:
    context = browser.new_context(**options)
    page = context.new_page()
    page.set_default_timeout(20_000)
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: (wrong.append(f"alert: {dialog.message}"), dialog.dismiss()))
    page.on(
        "request",
        lambda asked: wrong.append(asked.url) if not asked.url.startswith(("file:", "data:", "blob:")) else None,
    )
    page.goto(path.as_uri())
    yield page
    context.close()
    assert wrong == []


def _place_of(page: Page, trial: int) -> tuple[float, float]:
    """Where the point of a trial lies, in pixels of the window."""
    page.locator("#plot-front").scroll_into_view_if_needed()
    x, y = page.evaluate(
        """(trial) => {
          const plot = document.getElementById("plot-front");
          const data = JSON.parse(document.getElementById("page-data").textContent);
          const place = data.trials.findIndex((t) => t.trial === trial), {xaxis, yaxis} = plot._fullLayout;
          const box = plot.querySelector(".nsewdrag").getBoundingClientRect(), own = data.trials[place];
          return [box.x + xaxis.d2p(own.cost), box.y + yaxis.d2p(own.accuracy)];
        }""",
        trial,
    )
    return x, y


def _click(page: Page, trial: int) -> None:
    """As a person does: point at the trial until the plot says that it is the one, and click.

    The page may still be moving below the pointer when its place is asked for; and two clicks within 300 ms are a
    double click, with which Plotly shows the whole plot.
    """
    from playwright.sync_api import TimeoutError as TooLong

    label = page.locator("#plot-front .hoverlayer").get_by_text(f"trial {trial}")
    for _ in range(10):
        x, y = _place_of(page, trial)
        page.mouse.move(x + 40, y + 40)
        page.mouse.move(x, y)
        with suppress(TooLong):
            label.first.wait_for(timeout=2_000)
            break
    page.wait_for_timeout(400)
    page.mouse.down()
    page.mouse.up()


def _shown_rows(page: Page) -> list[str]:
    page.locator("summary", has_text="All trials as a table").first.click()
    return list(page.locator("#trials tbody tr:visible").all_inner_texts())


def test_hovering_a_trial_tells_its_configuration(page: Page) -> None:
    page.mouse.move(*_place_of(page, 7))
    hover = page.locator("#plot-front .hoverlayer")
    hover.get_by_text("trial 7").wait_for()
    text = hover.text_content()
    for words in ("vit", "test_vit", "on validation", "train.lr", "CPU-s"):
        assert words in text


def test_a_click_on_a_trial_filters_for_those_like_it_and_a_second_one_ends_that(page: Page) -> None:
    _click(page, 7)
    page.locator("#chosen:visible").get_by_text("Trial 7").wait_for()
    assert "learning" not in page.locator("#chosen").inner_text()
    assert "train.lr: 0.001" in page.locator("#chosen").inner_text()
    said = page.locator("#filtered").inner_text()
    assert "of 24 trials" in said
    assert "teacher vit" in said
    rows = _shown_rows(page)
    assert 0 < len(rows) < 24
    assert all("vit\ttest_vit" in row for row in rows)
    _click(page, 7)
    page.locator("#filtered", has_text="all 24 trials").wait_for()
    assert page.locator("#chosen:visible").count() == 0


def test_filters_work_from_the_keyboard(page: Page) -> None:
    page.locator("#filters select").first.focus()
    page.keyboard.type("cnn")
    page.locator("#filtered", has_text="teacher cnn").wait_for()
    assert all("\tcnn\t" in row for row in _shown_rows(page))
    page.locator("#filters button").focus()
    page.keyboard.press("Enter")
    page.locator("#filtered", has_text="all 24 trials").wait_for()
    page.locator("#trials tbody button").first.focus()
    page.keyboard.press("Enter")
    page.locator("#chosen:visible").wait_for()


def test_every_figure_is_drawn_and_has_a_name(page: Page) -> None:
    plots = page.locator(".plot")
    assert plots.count() == 8
    for plot in plots.all():
        assert plot.locator(".main-svg").count() > 0
        assert len(plot.get_attribute("aria-label")) > 20
    assert page.locator("#plot-front .errorbar").count() >= 6, "three rows of the front, and the arms"
    assert page.locator("#plot-parallel .scatterlayer path.js-line").count() >= 5
    assert page.locator("#plot-rungs .scatterlayer path.point").count() == 2 * 18, "those with a curve, at both rungs"


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.1), (3.0, 11.0), (0.02, 4000.0), (5.0, 5.0)])
def test_the_axis_of_cost_has_ticks_whatever_it_spans(browser: Any, tmp_path: Path, low: float, high: float) -> None:
    run = write_full_run(tmp_path / "spans" / "a1")
    costs = (low, (low * high) ** 0.5, high)
    run.write_trials([trial_row(n, cost=cost(costs[n % 3])) for n in range(6)])
    run.write_pareto([final_row(rank, cost=cost(costs[rank - 1])) for rank in (1, 2, 3)])
    run.write_ablation([])
    run.write_report()
    for page in _opened(browser, run.path / "report.html", viewport=DESKTOP):
        shown = page.locator("#plot-front .xaxislayer-above .xtick text").all_text_contents()
        assert 2 <= len(shown) <= 20
        assert len(set(shown)) == len(shown)


def test_the_table_sorts_by_value(page: Page) -> None:
    head = page.locator("#pareto thead th", has_text="CPU-s")
    column = page.locator("#pareto thead th").all_inner_texts().index("CPU-s")
    for order in ("descending", "ascending"):
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == order
        cells = page.locator("#pareto tbody tr").all()
        costs = [float(row.locator("th, td").nth(column).inner_text()) for row in cells]
        assert costs == sorted(costs, reverse=order == "descending")


@pytest.mark.parametrize(("kind", "words"), [("csv", "rank,trial,teacher"), ("tex", r"\begin{tabular}")])
def test_the_table_can_be_copied(page: Page, kind: str, words: str) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator(f"[data-copy={kind}]").click()
    page.locator("#copied", has_text="copied").wait_for()
    assert words in page.evaluate("navigator.clipboard.readText()")


def test_names_are_text_everywhere(page: Page) -> None:
    _click(page, 24)
    page.locator("#chosen:visible").get_by_text(NASTY).first.wait_for()
    assert page.locator("img[src=x]").count() == 0
    assert page.locator("[onerror]").count() == 0
    page.mouse.move(*_place_of(page, 24))
    page.locator("#plot-front .hoverlayer", has_text="onerror").wait_for()
    assert page.get_by_text(NASTY).count() > 5


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_ink_and_paper_differ_in_both_schemes(browser: Any, path: Path, scheme: str) -> None:
    for page in _opened(browser, path, viewport=DESKTOP, color_scheme=scheme, reduced_motion="reduce"):
        colours = page.evaluate(
            "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor, "
            "getComputedStyle(document.querySelector('#plot-front .xtick text')).fill]"
        )
        brightness = [
            sum(map(int, colour.removeprefix("rgb(").removesuffix(")").split(", "))) / 765 for colour in colours
        ]
        ink, paper, ticks = brightness
        assert (ink < paper) == (scheme == "light")
        assert min(abs(ink - paper), abs(ticks - paper)) > 0.7


def test_nothing_is_wider_than_a_phone(browser: Any, path: Path) -> None:
    for page in _opened(browser, path, viewport=PHONE, has_touch=True, is_mobile=True):
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        assert page.locator("#plot-front .main-svg").first.bounding_box()["width"] <= PHONE["width"]


def test_without_scripts_tables_and_the_printed_picture_are_left(browser: Any, path: Path) -> None:
    for page in _opened(browser, path, viewport=DESKTOP, java_script_enabled=False):
        assert page.locator("img.print").is_visible()
        assert page.locator("#pareto tbody tr").count() == 3
        assert page.locator(".needs-js:visible").count() == 0


def test_headings_and_tables_are_those_that_a_screen_reader_needs(page: Page) -> None:
    assert page.locator("h1").count() == 1
    levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3')].map((h) => Number(h.tagName[1]))")
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    for table in page.locator("table").all():
        assert table.locator("th[scope=col]").count() > 0
        assert table.locator("tbody th[scope=row]").count() > 0
    names = page.locator("button, select").evaluate_all(
        "all => all.map((one) => (one.ariaLabel || one.textContent || one.labels?.[0]?.textContent || '').trim())"
    )
    assert all(names)
    assert page.locator("img:not([alt]), img[alt='']").count() == 0
