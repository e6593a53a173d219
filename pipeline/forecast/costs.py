"""The cost of a run, from measured seconds and the prices that the user gives.

In: a forecast, the CPU seconds of stages on the sample, prices. Out: hours and money.
"""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Self

from pipeline.config.fingerprint import fingerprint
from pipeline.engine.run_folder import RunFolder
from pipeline.forecast.from_sample import Forecast
from pipeline.forecast.stratified_estimates import Interval
from pipeline.records import KEPT
from pipeline.storage import files


@dataclasses.dataclass(frozen=True)
class Prices:
    """Prices in one currency, and the speed of captioning; None if unknown."""

    cpu_hour: float | None = None  # of one core
    gpu_hour: float | None = None  # of one GPU or TPU chip
    captions_per_gpu_s: float | None = None
    gb_month: float | None = None  # of storage

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if value is not None and not (is_number and 0 < value < math.inf):
                raise ValueError(f"{name}={value!r}: expected a number above 0")


def read_prices(path: str) -> Prices:
    """Reads the prices of a JSON file; all are unknown without a path.

    Raises:
      ValueError: with one line about the fault of the file.
    """
    if not path:
        return Prices()
    try:
        found = json.loads(pathlib.Path(path).read_bytes())
    except OSError as error:
        raise ValueError(f"--prices {path}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"--prices {path}: expected JSON: {error}") from error
    known = [field.name for field in dataclasses.fields(Prices)]
    for name in found if isinstance(found, dict) else [found]:
        if name not in known:
            expected = ", ".join(known)
            raise ValueError(f"--prices {path}: {name!r}, expected keys of {expected}")
    try:
        return Prices(**found)
    except ValueError as error:
        raise ValueError(f"--prices {path}: {error}") from error


@dataclasses.dataclass(frozen=True)
class StageTime:
    """CPU seconds of a stage, and the pairs it worked on."""

    cpu_s: float
    n_pairs: int
    fingerprint: str  # of the tables it made
    start_cpu_s: float = 0.0  # of it, what a worker takes before its first pair

    @property
    def cpu_s_per_pair(self) -> float:
        """Mean CPU seconds of one pair, without the start where it was measured."""
        return max(self.cpu_s - self.start_cpu_s, 0.0) / self.n_pairs


class Stopwatch:
    """Measures CPU seconds of a block, of this process and its finished children."""

    def __enter__(self) -> Self:
        self._start_s = _cpu_s()
        return self

    def __exit__(self, *error: object) -> None:
        self.cpu_s = _cpu_s() - self._start_s

    def stage_time(
        self, stage: str, n_pairs: int, sample: RunFolder, start_cpu_s: float = 0.0
    ) -> dict[str, StageTime]:
        """Returns stage to its time; {} if the stage had no work to do."""
        if not n_pairs:
            return {}
        named = _fingerprint(stage, sample)
        return {stage: StageTime(self.cpu_s, n_pairs, named, start_cpu_s)}


def _cpu_s() -> float:
    return sum(os.times()[:4])


def _fingerprint(stage: str, sample: RunFolder) -> str:
    if stage != "score":
        return sample.pool_fingerprint
    folders = [
        tables(source).folder.removeprefix(sample.root)
        for source in sample.config.sources
        for tables in (sample.pairs, sample.languages, sample.embeddings)
    ]
    return fingerprint("score", folders)


def read_times(path: str, sample: RunFolder) -> dict[str, StageTime]:
    """Reads the times that an earlier forecast measured while making the same tables.

    A forecast that finds these tables has no time to measure.
    """
    if not files.is_file(path):
        return {}
    names = [field.name for field in dataclasses.fields(StageTime)]
    found = {
        stage: StageTime(**{name: time[name] for name in names if name in time})
        for stage, time in json.loads(files.read(path))["stages"].items()
    }
    return {
        stage: time
        for stage, time in found.items()
        if time.fingerprint == _fingerprint(stage, sample)
    }


@dataclasses.dataclass(frozen=True)
class Costs:
    """Hours and money; `missing` names the prices without which some are unknown."""

    cpu_hours: Mapping[str, Interval]  # by stage
    gpu_hours: Interval | None
    money: Mapping[str, Interval]
    missing: tuple[str, ...]


def compute_costs(
    forecast: Forecast, stage_to_time: Mapping[str, StageTime], prices: Prices
) -> Costs:
    """Computes the costs of the whole run.

    The time of `export` is per kept pair, that of other stages per pair.
    """
    cpu_hours = {
        stage: _pairs_of(stage, forecast) * (time.cpu_s_per_pair / 3600)
        for stage, time in stage_to_time.items()
    }
    gpu_hours = None
    if prices.captions_per_gpu_s is not None:
        n_captions = add_intervals(forecast.name_to_captions.values())
        gpu_hours = n_captions * (1 / prices.captions_per_gpu_s / 3600)
    written = add_intervals(forecast.bytes_written.values())
    name_to_use = {
        "cpu_hour": add_intervals(cpu_hours.values()),
        "gpu_hour": gpu_hours,
        "gb_month": written * 1e-9,
    }
    money = {
        name: use * price
        for name, use in name_to_use.items()
        if use is not None and (price := getattr(prices, name)) is not None
    }
    missing = tuple(
        name for name, price in dataclasses.asdict(prices).items() if price is None
    )
    return Costs(cpu_hours, gpu_hours, money, missing)


def _pairs_of(stage: str, forecast: Forecast) -> Interval:
    return forecast.outcome_to_count[KEPT] if stage == "export" else forecast.n_pairs


def add_intervals(intervals: Iterable[Interval]) -> Interval:
    """Adds estimates of one sample end by end, as their errors may be correlated."""
    ends = [dataclasses.astuple(one) for one in intervals]
    return Interval(*map(sum, zip(*ends, strict=True))) if ends else Interval(0, 0, 0)
