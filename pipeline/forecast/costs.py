"""What a run costs, from measured seconds and the prices that the user gives.

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
    """What things cost, in one currency, and how fast a GPU captions; None: unknown."""

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
    """The prices in a JSON file, or none without a path.

    Raises:
      ValueError: one line that says what is wrong with the file.
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
    """CPU seconds of a stage, its start included, and the pairs that it worked on."""

    cpu_s: float
    n_pairs: int
    fingerprint: str  # of the tables that it made

    @property
    def cpu_s_per_pair(self) -> float:
        return self.cpu_s / self.n_pairs


class Stopwatch:
    """CPU seconds of a block: of this process and the children it has waited for."""

    def __enter__(self) -> Self:
        self._start_s = _cpu_s()
        return self

    def __exit__(self, *error: object) -> None:
        self.cpu_s = _cpu_s() - self._start_s

    def times(
        self, stage: str, n_pairs: int, sample: RunFolder
    ) -> dict[str, StageTime]:
        """The time of a stage by its name; nothing if it had nothing to do."""
        if not n_pairs:
            return {}
        return {stage: StageTime(self.cpu_s, n_pairs, _fingerprint(stage, sample))}


def _cpu_s() -> float:
    return sum(os.times()[:4])


def _fingerprint(stage: str, sample: RunFolder) -> str:
    if stage != "score":
        return sample.decisions_fingerprint
    folders = [
        tables(source).folder.removeprefix(sample.root)
        for source in sample.config.sources
        for tables in (sample.pairs, sample.languages, sample.embeddings)
    ]
    return fingerprint("score", folders)


def read_times(path: str, sample: RunFolder) -> dict[str, StageTime]:
    """What an earlier forecast measured of stages that made the same tables.

    Tables that are there already take no time.
    """
    if not files.is_file(path):
        return {}
    names = [field.name for field in dataclasses.fields(StageTime)]
    found = {
        stage: StageTime(**{name: time[name] for name in names})
        for stage, time in json.loads(files.read(path))["stages"].items()
    }
    return {
        stage: time
        for stage, time in found.items()
        if time.fingerprint == _fingerprint(stage, sample)
    }


@dataclasses.dataclass(frozen=True)
class Costs:
    """Hours and money; what is not known is left out of `money` and named."""

    cpu_hours: Mapping[str, Interval]  # by stage
    gpu_hours: Interval | None
    money: Mapping[str, Interval]
    missing: tuple[str, ...]


def costs(
    forecast: Forecast, stage_to_time: Mapping[str, StageTime], prices: Prices
) -> Costs:
    """Of the whole run; `export` is counted by kept pairs, other stages by all."""
    cpu_hours = {
        stage: _pairs_of(stage, forecast) * (time.cpu_s_per_pair / 3600)
        for stage, time in stage_to_time.items()
    }
    gpu_hours = None
    if prices.captions_per_gpu_s is not None:
        n_captions = added_up(forecast.name_to_captions.values())
        gpu_hours = n_captions * (1 / prices.captions_per_gpu_s / 3600)
    written = added_up(forecast.bytes_written.values())
    name_to_use = {
        "cpu_hour": added_up(cpu_hours.values()),
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


def added_up(intervals: Iterable[Interval]) -> Interval:
    """The sum of estimates of one sample, which may err together."""
    ends = [dataclasses.astuple(one) for one in intervals]
    return Interval(*map(sum, zip(*ends, strict=True))) if ends else Interval(0, 0, 0)
