"""The page of the report, of runs made by hand."""

import base64
import collections
import dataclasses
import html.parser
import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.commands import run_record
from pipeline.config.curation import Limits
from pipeline.config.selection import KeepFraction, MinScore
from pipeline.engine.run_folder import RunFolder
from pipeline.records import VERSION, DropReason
from pipeline.report import (
    config_diff,
    histograms,
    measures,
    page,
    select_steps,
    threshold_sliders,
    thumbnails,
)
from pipeline.report.page_data import N_SAMPLE, read_page_data
from pipeline.report.run_comparison import OtherRun, compare
from pipeline.report.sampling import PairLocation, SmallestKeys
from recipes.safe_text import visible
from tests.support.report_runs import (
    SELECTION,
    ScoredRow,
    ledger_of,
    make_run,
    random_rows,
    write_page,
)
from tests.support.score_tables import select

HOSTILE = (
    "</script><script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "\u202egnirts desrever\u202c {{ 7 * 7 }} ${7*7} \x1b[31m",
    "' onmouseover='alert(1)' x='",
    "a" * 1_000_000,
)


class Parser(html.parser.HTMLParser):
    """Collects elements with their attributes, and the text of some."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: dict[str, list[str]] = collections.defaultdict(list)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "input", "rect", "line"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts[self.open[-1]].append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def parsed(text: str) -> Parser:
    parser = Parser()
    parser.feed(text)
    parser.close()
    return parser


def page_data(text: str) -> dict:
    """The data of the script of a page."""
    found = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)
    assert found
    return json.loads(found[1])


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunFolder:
    rows = random_rows(160)
    return make_run(tmp_path_factory.mktemp("report"), [rows[:90], rows[90:]])


@pytest.fixture(scope="module")
def text(run) -> str:
    return write_page(run).read_text()


def test_the_funnel_is_the_ledger(run, text):
    ledger = ledger_of(run)
    rows = dict(re.findall(r'<tr data-outcome="(\w+)".*?<td>([\d,]+)</td>', text, re.S))
    for reason, n in ledger["dropped"].items():
        assert rows[reason] == f"{n:,}"
    assert rows["kept"] == f"{ledger['kept']:,}"
    assert rows["unreadable"] == f"{ledger['unreadable']:,}"
    assert min(ledger["kept"], *_planted(ledger)) > 0


def test_the_page_says_what_the_pool_was_compared_with(run, text):
    names = re.findall(r'<h3 id="sets">.*?</table>', text, re.S)
    assert all(f"<bdi>{n}</bdi>" in names[0] for n in ("evaluation", "seeds"))
    assert "were not compared" not in text
    half = {"read": 4_000, "compared": 2_000, "unreadable": 2_000, "broken_shards": 1}
    half |= {"not_compared": {"JPEG: <cut off>": 2_000}, "such_as": ["<b>", "c"]}
    changed = {"evaluation": {"birds": half}, "seeds": {}}
    written = page.write(run, ledger_of(run) | changed)
    said = html.unescape(Path(written).read_text())
    assert (
        "birds: 2,000 of 4,000 evaluation images cannot be read and were not compared:"
        " JPEG: <cut off> (2,000); such as <b>, c; 1 of its shards cannot be read"
    ) in said
    assert "<cut off>" not in Path(written).read_text()


def test_the_page_shows_the_version(text):
    assert f"<footer><p>Version {VERSION}, decisions " in text


def _planted(ledger) -> list[int]:
    """Drops that SELECTION makes of random rows."""
    absent = (
        *(DropReason.OPT_OUT, DropReason.DROP_LIST, DropReason.UNSAFE_IMAGE),
        *(DropReason.NEAR_DUPLICATE, DropReason.BALANCE),
    )
    return [n for reason, n in ledger["dropped"].items() if reason not in absent]


def test_every_reason_shows_dropped_pairs_with_pictures(run, text):
    for reason, n in ledger_of(run)["dropped"].items():
        section = text.split(f'id="reason-{reason}"')
        assert (len(section) == 2) == (n > 0)
        if n:
            shown = section[1].split("</section>")[0]
            assert "data:image/jpeg;base64," in shown


def test_the_same_tables_give_the_same_page_byte_for_byte(run, text):
    assert write_page(run).read_text() == text


def test_further_pictures_are_in_the_order_of_their_locations(text):
    """The order of a set of strings would differ between processes."""
    keys = [tuple(map(int, key.split("-"))) for key in page_data(text)["pictures"]]
    assert len(keys) > 1
    assert keys == sorted(keys)


def test_the_policy_names_every_script_and_style(text):
    parser = parsed(text)
    policy = next(m["content"] for m in parser.named("meta") if "http-equiv" in m)
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy
    for tag in ("script", "style"):
        assert policy.count(f"{tag}-src 'sha256-") == 1


def test_the_page_has_no_external_address(text):
    parser = parsed(text)
    for _, attributes in parser.elements:
        assert not any(name.startswith("on") for name in attributes)
        assert "style" not in attributes
        for name in ("src", "href"):
            address = attributes.get(name) or "#"
            assert address.startswith(("#", "data:")), address


def test_pictures_and_charts_have_text_for_screen_readers(text):
    parser = parsed(text)
    images = parser.named("img")
    assert images
    assert all(image.get("alt") for image in images)
    charts = [svg for svg in parser.named("svg") if svg.get("role") == "img"]
    assert charts
    assert all(chart.get("aria-label") for chart in charts)
    ids = [a["id"] for _, a in parser.elements if "id" in a]
    assert len(ids) == len(set(ids))
    named = {a["href"] for a in parser.named("a")}
    assert named <= {f"#{name}" for name in ids}


def test_hostile_text_stays_text(tmp_path):
    rows = [
        ScoredRow(
            alt_text=f"red circle {nasty}", url="javascript:alert(1)", key=nasty[:50]
        )
        for nasty in HOSTILE
    ]
    error = [
        ScoredRow(error=HOSTILE[0]),
        ScoredRow(score=0.0, alt_text=f"blue {HOSTILE[1]}"),
    ]
    text = write_page(make_run(tmp_path, [rows + error], keep_all=True)).read_text()
    parser = parsed(text)
    assert len(parser.named("script")) == 2
    assert all(image["src"].startswith("data:") for image in parser.named("img"))
    assert all(link["href"].startswith("#") for link in parser.named("a"))
    assert "\u202e" not in text
    assert "[U+202E]gnirts" in text
    assert "aaaaa" * 100 not in text
    assert "{{ 7 * 7 }}" in text
    assert "<script>" not in text.split('id="data">')[1].split("</script>")[0]
    assert any("</script><script>" in shown for shown in page_data(text)["texts"])


def outcomes_of(data: dict) -> list[str]:
    """What the steps in the page decide at the run's thresholds, in plain Python."""
    n = len(data["ids"])
    outcomes = ["kept"] * n
    for step in data["steps"]:
        columns = {
            name: np.frombuffer(base64.b64decode(column), "<f8")
            for name, column in step["columns"].items()
        }
        bounds = [knob["value"] for knob in step["knobs"]]
        rows = [i for i in range(n) if outcomes[i] == "kept"]
        for i in rows:
            row = {name: column[i] for name, column in columns.items()}
            match step["kind"]:
                case "fixed":
                    if row["outcome"] >= 0:
                        outcomes[i] = data["outcomes"][int(row["outcome"])]
                    continue
                case "least":
                    fails = not row["value"] >= bounds[0]
                case "most":
                    fails = not row["value"] <= bounds[0]
                case "language":
                    is_wanted = bool(row["is_wanted"])
                    bound = bounds[0] if is_wanted else bounds[1]
                    fails = is_wanted != (row["probability"] >= bound)
                case "first_of_image":
                    same = [j for j in rows if columns["group"][j] == row["group"]]
                    fails = row["rank"] > min(columns["rank"][j] for j in same)
                case kind:
                    raise AssertionError(kind)
            if fails:
                outcomes[i] = step["reason"]
    return outcomes


def test_the_steps_in_the_page_decide_as_select_did(run, text):
    data = page_data(text)
    decided = np.frombuffer(base64.b64decode(data["decided"]), "<f8").astype(int)
    assert outcomes_of(data) == [data["outcomes"][code] for code in decided]
    assert len(decided) == data["n_readable"]


def test_a_step_that_cannot_be_repeated_is_unknown_to_pairs_before_it(run):
    data = read_page_data(run, ledger_of(run))
    later = [
        dataclasses.replace(
            one, decision=dataclasses.replace(one.decision, outcome="far_from_seeds")
        )
        for one in data.sample
        if one.decision.outcome == "kept"
    ]
    early = [x for x in data.sample if x.decision.outcome == "language"]
    selection = dataclasses.replace(SELECTION, retrieval=None)
    found = select_steps.make_steps(selection, [*early, *later], data.measures)
    (step,) = [step for step in found if step.reason == "far_from_seeds"]
    names = [select_steps.PAGE_OUTCOMES[int(code)] for code in step.columns["outcome"]]
    expected = [select_steps.UNKNOWN] * len(early) + ["far_from_seeds"] * len(later)
    assert names == expected


def test_a_quantile_is_a_step_with_its_fraction_as_a_threshold(tmp_path):
    selection = dataclasses.replace(SELECTION, alignment=KeepFraction(0.5))
    text = write_page(
        make_run(tmp_path, [random_rows(60)], selection=selection, keep_all=True)
    ).read_text()
    (step,) = [s for s in page_data(text)["steps"] if s["kind"] == "fraction"]
    path = "selection.alignment.keep_fraction"
    assert step["knobs"] == [{"path": path, "value": 0.5}]


def test_the_largest_sample_of_hostile_texts_leaves_room_for_pictures(run):
    data = read_page_data(run, ledger_of(run))
    nasty = "<\U0001f600" * 1000
    one = dataclasses.replace(
        data.sample[0],
        pair=dataclasses.replace(data.sample[0].pair, alt_text=nasty),
    )
    sample = [one] * N_SAMPLE
    found = select_steps.make_steps(
        SELECTION, sample, measures.compute_measures(sample)
    )
    script_data = threshold_sliders.to_json(sample, found, data.counts, {})
    assert len(page._script_json(script_data).encode()) < 12e6


def test_a_thumbnail_is_small_whatever_it_shows():
    noise = np.random.default_rng(0).integers(0, 255, (400, 300, 3), np.uint8)
    png = io.BytesIO()
    Image.fromarray(noise).save(png, "PNG")
    address = thumbnails.data_url(png.getvalue(), Limits())
    assert address.startswith("data:image/jpeg;base64,")
    assert 1000 < len(address) < 1.4 * thumbnails.MAX_BYTES
    assert thumbnails.data_url(b"no image", Limits()) == ""


def test_a_run_without_a_readable_pair_has_a_page(tmp_path):
    text = write_page(
        make_run(tmp_path, [[ScoredRow(error="empty image")]], keep_all=True)
    ).read_text()
    assert "1 pairs read" in text.replace("\n", " ")


def test_a_sample_of_a_larger_run_says_that_it_estimates(run, monkeypatch):
    monkeypatch.setattr("pipeline.report.page_data.N_SAMPLE", 50)
    monkeypatch.setattr("pipeline.report.page_data._MIN_SAMPLE", 50)
    data = read_page_data(run, ledger_of(run))
    assert not data.scan.is_census
    assert 0 < len(data.sample) <= 50
    inside = {one.pair.image_hash for one in data.sample}
    everyone = read_whole_sample(run)
    assert len(data.sample) == sum(x.pair.image_hash in inside for x in everyone)
    assert "95 % interval" in page.render_html(data, None)


def read_whole_sample(run: RunFolder) -> list:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.report.page_data.N_SAMPLE", 10_000)
        return list(read_page_data(run, ledger_of(run)).sample)


def test_decisions_that_another_threshold_changes_are_shown(run, tmp_path):
    other = dataclasses.replace(
        run,
        config=dataclasses.replace(
            run.config,
            selection=dataclasses.replace(SELECTION, alignment=MinScore(0.4)),
        ),
    )
    there = select(other)
    run_record.write(other, other.decisions.folder)
    folder = other.decisions.folder
    here = ledger_of(run)
    changes = compare(run, OtherRun.open(folder), 3)
    gained = changes.change_to_count["low_alignment", "kept"]
    assert gained > 0
    assert changes.n_common == here["read"]
    # Any other change follows from pairs that passed this time.
    lost = there["dropped"]["low_alignment"] - here["dropped"]["low_alignment"]
    from_alignment = [
        n for (was, _), n in changes.change_to_count.items() if was == "low_alignment"
    ]
    assert sum(from_alignment) == lost
    text = write_page(run, folder).read_text()
    assert "low alignment → kept" in text
    assert "selection.alignment.min_score" in text.split('id="against"')[1]


def test_runs_over_moved_shards_are_compared_by_number_and_id(tmp_path):
    rows = random_rows(30)
    first = make_run(tmp_path / "a", [rows], keep_all=True)
    second = make_run(tmp_path / "b", [list(reversed(rows[:20]))], keep_all=True)
    run_record.write(second, second.root)
    changes = compare(first, OtherRun.open(second.root), 3)
    n_common, *others = (changes.n_common, changes.n_only_here, changes.n_only_there)
    assert n_common >= 18
    assert others == [30 - n_common, 20 - n_common]


def test_a_folder_without_decisions_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected a run folder, or decisions"):
        OtherRun.open(str(tmp_path))


@given(st.lists(st.floats(0, 1), max_size=60), st.integers(1, 20), st.data())
@settings(max_examples=30, deadline=None)
def test_the_smallest_keys_are_collected_in_any_order_of_lots(keys, n, data):
    every = sorted((key, i % 3, i) for i, key in enumerate(keys))
    order = data.draw(st.permutations(range(3)))
    smallest = SmallestKeys(n)
    for lot in order:
        mine = [(key, row) for key, u, row in every if u == lot]
        rows = np.array([row for _, row in mine], np.int64)
        smallest.add(lot, rows, np.array([key for key, _ in mine]))
    assert smallest.locations() == [PairLocation(lot, row) for _, lot, row in every[:n]]
    whole = smallest.whole_groups()
    if len(every) > n and every[0][0] < every[n][0]:
        assert whole == [
            PairLocation(u, row) for key, u, row in every if key < every[n][0]
        ]


def test_a_histogram_counts_every_value_once():
    values = np.array([0.0, 0.5, 1.0, math.nan, 5.0])
    measure = measures.Measure("x", "x", values)
    found = histograms.count_values(
        measure, np.array([0, 1, 2, 0, 0]), [("bound", 0.7)]
    )
    assert [sum(row) for row in found.counts] == [2, 1, 1]
    assert found.n_missing == 1
    (line,) = found.lines
    assert 0 < line.position < 1


def test_settings_that_differ_are_named():
    here, there = {"a": [1, {"b": 2}], "c": None}, {"a": [1, {"b": 3}], "d": "x"}
    found = config_diff.find_differences(*map(config_diff.flatten, (here, there)))
    assert found == [("a.1.b", "2", "3"), ("c", "null", ""), ("d", "", '"x"')]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain  text\n here", "plain text here"),
        ("a\u202eb\x00\x1b[0m", "a[U+202E]b[U+0000][U+001B][0m"),
        ("long" * 100, "longlon…"),
        ("tag\U000e0041", "tag[U+E…"),
    ],
)
def test_hidden_characters_are_spelled_out(text, expected):
    n = 8 if expected.endswith("…") else 300
    assert visible(text, n) == expected
