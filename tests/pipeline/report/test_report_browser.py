"""The report's page in a real browser: `make test-browser`."""

import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image

from pipeline.config.selection import KeepFraction, MinScore, NearSeeds
from pipeline.engine.run_folder import RunFolder
from tests.pipeline.report.test_report import HOSTILE
from tests.support.report_runs import (
    SELECTION,
    ScoredRow,
    ledger_of,
    make_run,
    random_rows,
    write_page,
)
from tests.support.score_tables import select
from tools.chromium import Page, browser, executable

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(executable() is None, reason="no Chromium is installed"),
]

ALIGNMENT = "selection.alignment.min_score"
SEEDS = "selection.retrieval.min_similarity"
EVALUATION = "selection.max_evaluation_similarity"
WORDS = "selection.drop_rules.1.min_words"
FOREIGN = "selection.language.min_foreign_probability"

COUNTS = """JSON.stringify(Object.fromEntries(
  [...document.querySelectorAll("[data-outcome]")].map((row) =>
    [row.dataset.outcome, Number(row.querySelector(".n-if").dataset.count)])))"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunFolder:
    rows = random_rows(300)
    return make_run(tmp_path_factory.mktemp("report"), [rows[:200], rows[200:]])


@pytest.fixture
def opened(page, run) -> Page:
    """The page of the run, opened again."""
    page.resize(1280)
    page.said.clear()
    page.open(write_page(run))
    return page


def set_knob(page: Page, path: str, value: float, kind: str = "range") -> None:
    page.run(
        f"""(() => {{
          const found = document.querySelector(
            `input[type={kind}][data-path="{path}"]`);
          found.value = "{value}";
          found.dispatchEvent(new Event("input"));
        }})()"""
    )


def counts(page: Page) -> dict[str, int]:
    found = json.loads(page.run(COUNTS))
    assert found.pop("unknown") == 0
    return found


def counts_of(run: RunFolder, **changes) -> dict[str, int]:
    """What `select` counts with other settings."""
    selection = dataclasses.replace(run.config.selection, **changes)
    config = dataclasses.replace(run.config, selection=selection)
    changed = dataclasses.replace(run, config=config)
    ledger = select(changed) if changes else ledger_of(run)
    kept, unreadable = ledger["kept"], ledger["unreadable"]
    return ledger["dropped"] | {"kept": kept, "unreadable": unreadable}


def test_the_page_loads_from_a_disk_with_an_empty_console(opened):
    assert opened.said == []
    assert opened.run("document.querySelectorAll('.warning:not(.hidden)').length") == 0


def test_its_policy_is_in_force(opened):
    opened.run(
        "document.body.append(Object.assign("
        "document.createElement('script'), {textContent: 'window.ran = 1'}))"
    )
    assert opened.run("window.ran") is None
    assert any("Content Security Policy" in said for said in opened.said)


def test_the_counts_are_those_of_select(opened, run):
    assert counts(opened) == counts_of(run)


@pytest.mark.parametrize(
    ("path", "value", "changes"),
    [
        (ALIGNMENT, 0.35, {"alignment": MinScore(0.35)}),
        (ALIGNMENT, -0.05, {"alignment": MinScore(-0.05)}),
        (SEEDS, 0.85, {"retrieval": NearSeeds(0.85)}),
        (EVALUATION, 0.7, {"max_evaluation_similarity": 0.7}),
        (
            FOREIGN,
            0.9,
            {
                "language": dataclasses.replace(
                    SELECTION.language, min_foreign_probability=0.9
                )
            },
        ),
        (
            WORDS,
            4,
            {
                "drop_rules": (
                    SELECTION.drop_rules[0],
                    type(SELECTION.drop_rules[1])(4),
                    *SELECTION.drop_rules[2:],
                )
            },
        ),
    ],
)
def test_a_slider_gives_the_numbers_of_select(opened, run, path, value, changes):
    set_knob(opened, path, value)
    assert counts(opened) == counts_of(run, **changes)
    assert counts(opened) != counts_of(run)
    assert opened.run("document.getElementById('settings').textContent") == (
        f"--set {path}={value}"
    )
    assert opened.run("document.querySelectorAll('#moved-cards li').length") > 0


def test_several_thresholds_move_together_and_back(opened, run):
    set_knob(opened, ALIGNMENT, 0.4)
    set_knob(opened, SEEDS, 0.9, kind="number")
    expected = counts_of(run, alignment=MinScore(0.4), retrieval=NearSeeds(0.9))
    assert counts(opened) == expected
    opened.run("document.querySelector('button[type=reset]').click()")
    opened.run("new Promise((done) => setTimeout(done, 50))")
    assert counts(opened) == counts_of(run)


def test_a_quantile_gives_the_numbers_of_select(page, tmp_path):
    chosen = dataclasses.replace(SELECTION, alignment=KeepFraction(0.6))
    run = make_run(tmp_path, [random_rows(150)], selection=chosen)
    page.open(write_page(run))
    assert counts(page) == counts_of(run)
    set_knob(page, "selection.alignment.keep_fraction", 0.35)
    assert counts(page) == counts_of(run, alignment=KeepFraction(0.35))


def test_an_estimate_has_an_interval_and_is_exact_where_nothing_is_moved(
    page, run, monkeypatch
):
    monkeypatch.setattr("pipeline.report.page_data.N_SAMPLE", 120)
    monkeypatch.setattr("pipeline.report.page_data._MIN_SAMPLE", 120)
    page.open(write_page(run))
    assert counts(page) == counts_of(run)
    set_knob(page, ALIGNMENT, 0.4)
    shown = page.run("document.querySelector('[data-outcome=kept] .n-if').textContent")
    _, low, _, high = shown.replace("(", "").replace(")", "").split()
    truth = counts_of(run, alignment=MinScore(0.4))["kept"]
    assert int(low) <= truth <= int(high)


def test_images_appear(opened):
    opened.run("document.querySelectorAll('img').forEach((i) => (i.loading = 'eager'))")
    opened.run("Promise.all([...document.images].map((i) => i.decode()))")
    widths = json.loads(
        opened.run("JSON.stringify([...document.images].map((i) => i.naturalWidth))")
    )
    assert len(widths) > 50
    assert min(widths) > 0


def test_the_keyboard_reaches_and_moves_a_threshold(opened, run):
    opened.press("Tab", 9)
    assert opened.run("document.activeElement.className") == "skip"
    for _ in range(60):
        opened.press("Tab", 9)
        if opened.run("document.activeElement.dataset.path") == ALIGNMENT:
            break
    assert opened.run("document.activeElement.type") == "range"
    for _ in range(3):
        opened.press("ArrowRight", 39)
    value = opened.run("document.activeElement.value")
    assert float(value) == pytest.approx(0.203)
    assert counts(opened) == counts_of(run, alignment=MinScore(float(value)))


@pytest.mark.parametrize("width", [390, 1280, 1920])
@pytest.mark.parametrize("is_dark", [False, True])
def test_the_layout_fits_its_window(opened, width, is_dark):
    opened.resize(width)
    opened.dark(is_dark)
    assert opened.run("document.documentElement.scrollWidth") <= width
    too_wide = """[...document.querySelectorAll("main > section, figure, .card, form")]
      .filter((one) => one.getBoundingClientRect().right > innerWidth + 1).length"""
    assert opened.run(too_wide) == 0
    small = """[...document.querySelectorAll("#what-if input")]
      .filter((one) => one.getBoundingClientRect().height < 24).length"""
    assert opened.run(small) == 0
    form_left, table_right = (
        opened.run(f"document.querySelector('{selector}').getBoundingClientRect().{x}")
        for selector, x in (("form", "left"), ("table.funnel", "right"))
    )
    assert (form_left > table_right) == (width > 1000)
    pixels = np.asarray(Image.open(io.BytesIO(opened.screenshot())).convert("L"))
    assert pixels.shape[1] == width
    assert (np.median(pixels) < 80) == is_dark
    assert pixels.std() > 5  # something is drawn
    opened.dark(False)


def test_hostile_text_runs_nothing(page, tmp_path):
    rows = [
        ScoredRow(
            alt_text=f"red circle {nasty}",
            color=(number, 0, 0),
            url="javascript:alert(1)",
            key=nasty[:50],
        )
        for number, nasty in enumerate(HOSTILE)
    ]
    run = make_run(
        tmp_path / "<b onclick=alert(1)>", [rows, [ScoredRow(error=HOSTILE[0])]]
    )
    page.said.clear()
    page.open(write_page(run))
    set_knob(page, ALIGNMENT, 0.9, kind="number")
    page.run(
        "document.querySelectorAll('.card, summary').forEach((one) => {"
        "one.click(); one.dispatchEvent(new Event('mouseover'))})"
    )
    assert page.said == []
    assert page.run("document.title").startswith("Curation report")
    moved = page.run("document.getElementById('moved-cards').textContent")
    assert "</script><script>" in moved
    assert page.run("document.querySelectorAll('b[onclick]').length") == 0
