"""A forecast as text and as JSON.

In: a forecast, the times of stages, costs and rows of larger crawls. Out: lines for
people, and the contents of `RUN/forecast.json`.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from pipeline.forecast.costs import Costs, StageTime
from pipeline.forecast.extrapolation import ScaleRow
from pipeline.forecast.from_sample import Forecast
from pipeline.forecast.stratified_estimates import Interval
from pipeline.records import VERSION

_BYTE_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")


def to_json(
    forecast: Forecast,
    stage_to_time: Mapping[str, StageTime],
    costs: Costs,
    rows: Sequence[ScaleRow],
) -> bytes:
    """Returns the contents of `RUN/forecast.json`."""
    stages = {
        stage: dataclasses.asdict(time) | {"cpu_s_per_pair": time.cpu_s_per_pair}
        for stage, time in stage_to_time.items()
    }
    content = dataclasses.asdict(forecast) | {
        "stages": stages,
        "costs": dataclasses.asdict(costs),
        "scale": list(map(dataclasses.asdict, rows)),
        "version": VERSION,
    }
    return json.dumps(content, indent=1).encode() + b"\n"


def to_text(
    forecast: Forecast,
    stage_to_time: Mapping[str, StageTime],
    costs: Costs,
    rows: Sequence[ScaleRow],
) -> str:
    """Returns the forecast as lines, with 95 % intervals in brackets."""
    lines = [
        *_head(forecast),
        *_outcomes(forecast),
        *_work(forecast),
        *_costs(stage_to_time, costs),
        *_scale(rows),
    ]
    return "\n".join(lines)


def _head(forecast: Forecast) -> Iterator[str]:
    for source, (n_sampled, n_shards) in forecast.n_sampled_shards.items():
        yield f"sample: {n_sampled:,} of {n_shards:,} shards of {source}"
    yield f"sampled pairs: {forecast.n_sampled_pairs:,}"
    yield f"pairs: {_counts(forecast.n_pairs)}"
    for step in forecast.global_steps:
        yield f"not known from a sample: {step}"


def _outcomes(forecast: Forecast) -> Iterator[str]:
    yield "outcomes: share [95 %], pairs [95 %]"
    for name, share in forecast.outcome_to_share.items():
        count = _counts(forecast.outcome_to_count[name])
        yield f"  {name:22} {_format(share, '{:.2%}'.format)}  {count}"


def _work(forecast: Forecast) -> Iterator[str]:
    for name, images in forecast.name_to_images.items():
        captions = _counts(forecast.name_to_captions[name])
        yield f"to caption, {name}: images {_counts(images)}, captions {captions}"
    for title, found in (
        ("read", forecast.bytes_read),
        ("written", forecast.bytes_written),
    ):
        for name, n_bytes in found.items():
            yield f"{title}, {name}: {_format(n_bytes, format_bytes)}"
    for name in forecast.not_measured:
        yield f"not measured: {name}"


def _costs(stage_to_time: Mapping[str, StageTime], costs: Costs) -> Iterator[str]:
    for stage in ("score", "select", "export"):
        if stage not in stage_to_time:
            yield f"CPU of {stage}: not measured, its tables were there before"
            continue
        time = stage_to_time[stage]
        hours = _format(costs.cpu_hours[stage], "{:,.3g} h".format)
        of = "kept pair" if stage == "export" else "pair"
        start = "its start included: too much of a small sample"
        if time.start_cpu_s:
            whose = "the job" if stage == "select" else "each worker"
            start = f"and {time.start_cpu_s:,.3g} s for the start of {whose}"
        each_ms = 1000 * time.cpu_s_per_pair
        yield f"CPU of {stage}: {each_ms:,.3g} ms per {of}, {hours}, {start}"
    if costs.gpu_hours is not None:
        yield f"GPU of caption: {_format(costs.gpu_hours, '{:,.3g} h'.format)}"
    for name, money in costs.money.items():
        yield f"cost by {name}: {_format(money, '{:,.2f}'.format)}"
    if costs.missing:
        missing = ", ".join(costs.missing)
        yield f"left out: what needs {missing} of --prices FILE.json"


def _scale(rows: Iterable[ScaleRow]) -> Iterator[str]:
    yield "at other sizes, cut into shards like these, without the time of captioning:"
    for row in rows:
        hours = ", ".join(
            f"{hours:,.3g} h at {n:,}" for n, hours in row.workers_to_hours.items()
        )
        held, n_bytes = max(row.worker_bytes.items(), key=lambda item: item[1])
        shards = f"{row.n_source_shards:,} source shards in {row.n_lots:,} lots"
        yield f"  {row.n_pairs:.0e} pairs: {shards}"
        yield f"    time of one core each: {hours} workers"
        launcher = f"{row.launcher_cpu_s:,.3g} s"
        yield f"    CPU of the launcher in a command, beside its jobs: {launcher}"
        size = format_bytes(n_bytes)
        yield f"    memory of a worker besides models: {size} ({held})"
        yield f"    shuffled: {format_bytes(row.shuffle_bytes)}"
        yield f"    written: {_list(row.written_bytes, format_bytes)}"
        yield f"    files: {_list(row.n_files, '{:,.0f}'.format)}"
        blocks = f"{row.n_caption_blocks:,} blocks of images"
        yield f"    captions: {row.n_captions:,.3g}, in {blocks}"


def _list(name_to_value: Mapping[str, float], text_of: Callable[[float], str]) -> str:
    """The sum, and what it is made of."""
    parts = ", ".join(f"{n} {text_of(value)}" for n, value in name_to_value.items())
    return f"{text_of(sum(name_to_value.values()))} ({parts})"


def _counts(interval: Interval) -> str:
    return _format(interval, "{:,.0f}".format)


def _format(interval: Interval, text_of: Callable[[float], str]) -> str:
    """The estimate, followed by the ends of its interval unless it is exact."""
    if interval.low == interval.high:
        return text_of(interval.estimate)
    low, high = text_of(interval.low), text_of(interval.high)
    return f"{text_of(interval.estimate)} [{low}, {high}]"


def format_bytes(n_bytes: float) -> str:
    """Formats a size with three digits in a decimal unit."""
    power = 0
    while n_bytes >= 999.5 and power + 1 < len(_BYTE_UNITS):
        n_bytes, power = n_bytes / 1000, power + 1
    return f"{n_bytes:.3g} {_BYTE_UNITS[power]}"
