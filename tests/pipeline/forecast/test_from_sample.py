"""Forecasts of a tiny run from a sample of its shards."""

import dataclasses
import json
import pathlib
import tracemalloc

import numpy as np
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from pipeline import curate, records, run
from pipeline.captioning import footprint as captioning
from pipeline.config.selection import (
    KeepFraction,
    MinScore,
    NearestToSeeds,
    SelectionConfig,
)
from pipeline.demo_web import crawl
from pipeline.forecast import costs as forecast_costs
from pipeline.forecast import extrapolation, launcher
from pipeline.forecast import from_sample as forecast
from pipeline.forecast import text as forecast_text
from pipeline.forecast.costs import Prices, StageTime
from pipeline.forecast.stratified_estimates import Design, Interval
from pipeline.records import VERSION
from pipeline.selection import integer_counts, rules
from pipeline.selection import ledger as ledger_module
from pipeline.selection.duplicates import exact as dedup
from pipeline.storage import files
from pipeline.storage.tables import from_table, to_table
from tests.pipeline.test_run import CONFIG, error_of
from tests.support.tiny_run import LONG, SHORT, Row, encoded, make_run, write_captions

SELECTION = SelectionConfig(
    drop_rules=(rules.FewWords(2), rules.SmallImage(10)), alignment=MinScore(0.2)
)
OPTIONS = PipelineOptions([])
N_SHARDS, N_SAMPLED = 20, 8


def shard(number: int) -> list[Row]:
    """Pairs of which some have few words, a tiny image or a low score."""
    rng = np.random.default_rng(number)
    rows = []
    for i in range(int(rng.integers(12, 20))):
        image = encoded((number, i, 9), size=(30, 9 if rng.random() < 0.15 else 20))
        text = "text" if rng.random() < 0.3 else "a text"
        rows.append(Row(image, text, score=float(rng.choice([0.1, 0.3], p=[0.2, 0.8]))))
    return rows


@pytest.fixture(scope="module")
def shards() -> dict[str, list[Row]]:
    return {f"{number:02d}": shard(number) for number in range(N_SHARDS)}


@pytest.fixture(scope="module")
def whole(shards, tmp_path_factory):
    """A run of which the scores are there."""
    root = tmp_path_factory.mktemp("forecast")
    made = make_run(root, shards, selection=SELECTION)
    for lot in made.lots:
        n_pairs = made.pairs(lot.source).read(lot.name).num_rows
        languages = to_table([records.Language("en", 1)] * n_pairs, records.Language)
        made.languages(lot.source).write(lot.name, languages)
        made.decisions.delete([lot.name])
    return made


@pytest.fixture(scope="module")
def sample(whole):
    chosen = forecast.draw_sample(whole, N_SAMPLED)
    curate.select_sample(chosen, OPTIONS)
    return chosen


@pytest.fixture(scope="module")
def found(whole, sample) -> forecast.Forecast:
    return forecast.make_forecast(whole, sample, forecast.measure_sample(whole, sample))


def test_a_sample_leaves_the_ledger_of_the_run_alone(whole, sample):
    assert not pathlib.Path(whole.root, "ledger.json").exists()
    assert ledger_module.read(whole) is None
    assert len(sample.decisions.lot_names()) == N_SAMPLED


def test_the_sample_depends_on_names_of_shards_and_not_on_their_order(whole, sample):
    assert len(sample.lots) == N_SAMPLED
    backwards = dataclasses.replace(whole, lots=whole.lots[::-1])
    assert set(forecast.draw_sample(backwards, N_SAMPLED).lots) == set(sample.lots)
    assert set(forecast.draw_sample(whole, N_SAMPLED + 1).lots) > set(sample.lots)


def test_a_sample_larger_than_the_run_is_the_whole_run(whole):
    assert forecast.draw_sample(whole, 99).lots == whole.lots  # lots of one shard


def test_most_intervals_hold_the_ledger_of_the_whole_run(whole, found):
    """One in twenty may miss; which shards are sampled depends on their paths."""
    curate.select(whole, OPTIONS)
    ledger = ledger_module.read(whole)
    outcomes = ledger["dropped"] | {n: ledger[n] for n in ("kept", "unreadable")}
    is_held = {
        name: interval.low <= outcomes[name] <= interval.high
        for name, interval in found.outcome_to_count.items()
    }
    assert set(is_held) == set(outcomes)
    assert sum(is_held.values()) >= 0.7 * len(is_held), is_held
    for name in ("kept", "few_words", "tiny_image", "low_alignment"):
        assert 0 < outcomes[name] < 2 * found.outcome_to_count[name].high


def test_a_forecast_from_all_shards_is_the_ledger(whole):
    curate.select(whole, OPTIONS)
    exact = forecast.make_forecast(whole, whole, forecast.measure_sample(whole, whole))
    ledger = ledger_module.read(whole)
    kept = ledger["kept"]
    assert exact.outcome_to_count["kept"] == Interval(kept, kept, kept)
    assert exact.name_to_images["short"] == Interval(kept, kept, kept)
    written = exact.bytes_written["decisions"].estimate
    assert written == sum(files.sizes(f"{whole.decisions.folder}/*.parquet").values())


def test_bytes_read_are_the_sizes_of_the_files(whole, found):
    size = sum(pathlib.Path(lot.shards[0].uri).stat().st_size for lot in whole.lots)
    assert found.bytes_read["score: sources"] == Interval(size, size, size)
    kept_images = found.bytes_read["export: kept images"]
    assert found.bytes_read["caption: kept images"] == kept_images  # one model


def test_existing_captions_give_the_bytes_of_missing_ones(whole, sample, shards):
    before = forecast.make_forecast(
        whole, sample, forecast.measure_sample(whole, sample)
    )
    assert (
        before.not_measured[0] == "captions/short: no caption of the sampled lots yet"
    )
    write_captions(sample, shards, [SHORT])
    after = forecast.make_forecast(
        whole, sample, forecast.measure_sample(whole, sample)
    )
    assert [line.partition(":")[0] for line in after.not_measured] == ["captions/long"]
    assert after.bytes_written["captions/short"].estimate > 0
    tfrecords = after.bytes_written["tfrecords"].estimate
    assert tfrecords > before.bytes_written["tfrecords"].estimate


def test_captions_of_a_lot_of_many_shards_are_those_of_its_sampled_shards(
    whole, sample, shards
):
    shards_of_lot = tuple(lot.shards[0] for lot in whole.lots)
    lot = dataclasses.replace(whole.lots[0], name="web-00000-a", shards=shards_of_lot)
    run = dataclasses.replace(whole, lots=(lot,))
    before = forecast.measure_sample(run, sample).name_to_caption_bytes
    write_captions(run, shards, [LONG])
    after = forecast.measure_sample(run, sample).name_to_caption_bytes
    assert after.keys() - before.keys() == {"long"}


def test_a_source_without_shards_left_weighs_nothing(recwarn):
    design = Design(np.array([0, 0]), np.array([4, 0]))
    assert design.weights.tolist() == [2, 2]
    assert not recwarn


def test_equal_images_are_captioned_once_unless_their_prompts_differ(whole):
    (pair, *_) = from_table(
        whole.pairs(whole.config.sources[0]).read(whole.lots[0].name), records.Pair
    )
    pairs = [pair, dataclasses.replace(pair, alt_text="another")]
    by_text = dataclasses.replace(SHORT, prompt="{alt_text}")
    imported = dataclasses.replace(SHORT, prompt="", captioner="imported")
    counts = [captioning.count_images(g, pairs) for g in (LONG, by_text, imported)]
    assert counts == [1, 2, 0]


def test_steps_that_look_at_all_shards_are_named():
    selection = SelectionConfig(alignment=KeepFraction(0.5), retrieval=NearestToSeeds())
    names = [
        line.partition(":")[0] for line in forecast.describe_global_steps(selection)
    ]
    assert names == ["low_alignment", "exact_duplicate", "far_from_seeds"]
    plain = dataclasses.replace(SELECTION, drop_exact_duplicates=False)
    assert forecast.describe_global_steps(plain) == ()


TIMES = {"score": StageTime(36.0, 1000, "f"), "export": StageTime(3.6, 100, "f")}


def test_costs_are_use_times_price(found):
    prices = Prices(cpu_hour=2, gpu_hour=3, captions_per_gpu_s=10)
    costs = forecast_costs.compute_costs(found, TIMES, prices)
    n_pairs, n_kept = found.n_pairs.estimate, found.outcome_to_count["kept"].estimate
    hours = (n_pairs + n_kept) * 1e-5
    assert costs.money["cpu_hour"].estimate == pytest.approx(2 * hours)
    gpu_hours = 2 * n_kept / 10 / 3600  # two granularities
    assert costs.money["gpu_hour"].estimate == pytest.approx(3 * gpu_hours, rel=0.01)
    assert costs.missing == ("gb_month",)
    assert "gb_month" not in costs.money


def test_without_prices_the_lines_of_costs_name_the_flag(found):
    costs = forecast_costs.compute_costs(found, TIMES, Prices())
    text = forecast_text.to_text(found, TIMES, costs, [])
    expected = "cpu_hour, gpu_hour, captions_per_gpu_s, gb_month of --prices FILE.json"
    assert f"left out: what needs {expected}" in text
    assert "cost by" not in text
    assert "CPU of select: not measured" in text
    assert "exact_duplicate: a lower bound" in text


def test_times_are_read_again_while_tables_are_the_same(sample, found):
    path = files.join(sample.root, "forecast.json")
    with forecast_costs.Stopwatch() as watch:
        pass
    times = watch.stage_time("score", 10, sample) | watch.stage_time(
        "select", 10, sample
    )
    costs = forecast_costs.compute_costs(found, times, Prices())
    files.write(path, forecast_text.to_json(found, times, costs, []))
    assert forecast_costs.read_times(path, sample) == times
    looser = dataclasses.replace(SELECTION, alignment=MinScore(0.0))
    config = dataclasses.replace(sample.config, selection=looser)
    other = dataclasses.replace(sample, config=config)
    assert set(forecast_costs.read_times(path, other)) == {"score"}


@pytest.fixture
def pair_costs(sample, found) -> extrapolation.PairCosts:
    shares = dict.fromkeys(map(str, records.DropReason), 0.0)
    shares |= {"kept": 0.5, "unreadable": 0.0, "few_words": 0.4, "exact_duplicate": 0.1}
    made = extrapolation.PairCosts.from_sample(sample, found, TIMES)
    return dataclasses.replace(
        made,
        pairs_per_shard=1000.0,
        outcome_to_share=shares,
        captions_per_pair=1.0,
        name_to_captioned_share={"short": 0.5, "long": 0.5},
    )


def test_the_scale_model_of_a_million_pairs(pair_costs):
    row = extrapolation.scale_row(pair_costs, 10**6)
    assert row.n_source_shards == 1000
    # 36 ms a pair; and as much for each of the 500,000 kept, 10,000 a training shard.
    assert row.workers_to_hours[1] == pytest.approx((10**6 + 500_000) * 0.036 / 3600)
    # No worker does less than a shard of either kind.
    assert row.workers_to_hours[10_000] == pytest.approx(11_000 * 0.036 / 3600)
    assert row.n_lots == 10  # of 100,000 pairs, of which 50,000 are kept
    assert row.n_files == {
        "scores": 10 * (3 * 2 + 1),
        "decisions and similarities": 10 * 2,
        "captions": 10 * 2 * (2 * 2 * 25 + 1),  # in blocks of 2,048 images
        "training shards": 10 * (5 * 2 + 1),
        "report": 10 * 2,
    }
    assert row.n_caption_blocks == 250
    assert row.launcher_cpu_s == launcher.cpu_s(10)
    group = 600_000 / dedup.n_groups(600_000)
    assert row.worker_bytes[
        "select: a group of exact duplicates"
    ] / group == pytest.approx(107)
    assert row.n_captions == 10**6


def peak_bytes(work) -> int:
    tracemalloc.start()
    work()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def test_the_model_of_memory_is_what_exact_duplicates_take(pair_costs):
    n_pairs = 40_000
    rng = np.random.default_rng(0)

    def find():
        words = rng.integers(0, 2**63, (n_pairs, 4), np.uint64)
        hashes, ids = words[:, :2].copy(), words[:, 2:].copy()
        del words
        block = dedup.Identities("u", "u", np.arange(n_pairs), hashes, ids)
        list(dedup.find_repeats(0, [block]))

    modeled = extrapolation.worker_bytes(pair_costs, n_pairs)[
        "select: a group of exact duplicates"
    ]
    of_one_group = modeled * dedup.n_groups(n_pairs) / 0.6
    assert 0.8 * of_one_group <= peak_bytes(find) <= 1.2 * of_one_group


def test_the_model_of_memory_is_what_the_quantile_takes(pair_costs):
    selection = dataclasses.replace(SELECTION, alignment=KeepFraction(0.5))
    config = dataclasses.replace(pair_costs.config, selection=selection)
    costs = dataclasses.replace(pair_costs, config=config)
    combine = integer_counts.SumCounts()

    def find():
        accumulator = combine.create_accumulator()
        for _ in range(20):
            tally = integer_counts.Counts.of(np.arange(2**16))
            accumulator = combine.add_input(accumulator, tally)
        combine.extract_output(accumulator)

    place = "select: counts of scores"
    modeled = extrapolation.worker_bytes(costs, 10**6)[place]
    assert modeled == extrapolation.worker_bytes(costs, 10**10)[place]
    assert 0.7 * modeled <= peak_bytes(find) <= 1.2 * modeled


@pytest.fixture
def base(tmp_path) -> list[str]:
    folder = tmp_path / "crawl"
    folder.mkdir()
    (folder / "0.tar").write_bytes(b"")
    shards = f"{folder}/*.tar"
    flags = ["--config", CONFIG, "--output", str(tmp_path / "run"), "--input", shards]
    return ["forecast", *flags, "--eval", f"e={shards}", "--seeds", f"s={shards}"]


def test_one_shard_is_refused(capsys, base):
    error = error_of(capsys, *base, "--forecast-shards", "1")
    assert "--forecast-shards 1: expected at least 2" in error


@pytest.mark.parametrize(
    ("prices", "expected"),
    [
        ('{"gpu_day": 3}', "'gpu_day', expected keys of cpu_hour, gpu_hour"),
        ('{"cpu_hour": -1}', "cpu_hour=-1: expected a number above 0"),
        ('{"cpu_hour": true}', "cpu_hour=True: expected a number above 0"),
        ("3", "3, expected keys of cpu_hour"),
        ("{", "prices.json: expected JSON: "),
        (None, "No such file or directory"),
    ],
)
def test_wrong_prices_are_refused(capsys, tmp_path, base, prices, expected):
    path = tmp_path / "prices.json"
    if prices is not None:
        path.write_text(prices)
    error = error_of(capsys, *base, "--prices", str(path))
    assert expected in error
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_run_finds_what_a_forecast_has_scored(capsys, tmp_path):
    web, output = tmp_path / "web", tmp_path / "run"
    crawl.clear(web)
    crawl.write(crawl.Web(600, 1, n_evaluation=16, n_seeds=16), web)
    flags = ["--config", CONFIG, "--output", str(output)]
    flags += ["--input", f"{web}/crawl/*.tar", "--eval", f"e={web}/evaluation/*.tar"]
    flags += ["--seeds", f"s={web}/seeds/*.tar"]
    run.main(["forecast", *flags, "--forecast-shards", "2"])
    text = capsys.readouterr().out
    assert "CPU of score: " in text
    found = json.loads((output / "forecast.json").read_text())
    n_pairs = found["n_sampled_pairs"]
    assert not (output / "ledger.json").exists()
    for name in ("forecast", "config", "progress"):
        assert json.loads((output / f"{name}.json").read_text())["version"] == VERSION
    run.main(["score", *flags])
    scored = capsys.readouterr().out
    assert f" pairs {600 - n_pairs}," in scored
    assert "lots_skipped 4" in scored  # two of the crawl, and both sets
    run.main(["forecast", *flags, "--forecast-shards", "2"])
    assert "not measured, its tables" not in capsys.readouterr().out
