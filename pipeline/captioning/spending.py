"""Counts what captions cost, and lets workers ask for no more than they may.

In: how many requests each lot may make. Out: `RUN/spending/<captions>/`, receipts of
every attempt to caption a lot. A worker writes its receipt before it asks, for the
most that it may ask for, and corrects it at the end. So the receipts never say less
than was asked for, whoever dies when.
"""

import collections
import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.config.captions import Granularity
from pipeline.engine.run_folder import RunFolder
from pipeline.models.interfaces import Caption, Captioner, ServiceError
from pipeline.storage import files

_RECEIPT = re.compile(r"(?P<lot>.+)\.\d+\.json")


def receipts_folder(run: RunFolder, granularity: Granularity) -> str:
    """Where the receipts of a granularity lie; they outlive its captions."""
    name = run.captions(granularity).rpartition("/")[2]
    return files.join(run.root, "spending", name)


def count_requests(folder: str, lot: str = "") -> collections.Counter[str]:
    """Requests of each lot, or of one, that receipts in a folder account for."""
    found: collections.Counter[str] = collections.Counter()
    prefix = f"{lot}." if lot else ""
    paths = list(files.list_folder(folder, prefix=prefix, suffix=".json"))
    for path, data in zip(paths, files.read_many(paths), strict=True):
        if isinstance(data, OSError):
            raise data
        name = _RECEIPT.fullmatch(path.rpartition("/")[2])
        if name and lot in ("", name["lot"]):
            found[name["lot"]] += json.loads(data)["n_requests"]
    return found


def describe(run: RunFolder, granularity: Granularity) -> str:
    """What a granularity has cost so far; "" of one whose requests are not counted."""
    if not granularity.is_metered:
        return ""
    n_asked = count_requests(receipts_folder(run, granularity)).total()
    return f"asked for: {price(granularity, n_asked)}{bound(granularity)}"


def price(granularity: Granularity, n_requests: int) -> str:
    """Requests, and their price if it is known."""
    usd = granularity.spend.usd(n_requests)
    return f"{n_requests:,} requests" + ("" if usd is None else f", {usd:,.2f} USD")


def bound(granularity: Granularity) -> str:
    """The bound of a granularity, to follow a number; "" if there is none."""
    limit = granularity.spend.limit
    return "" if limit is None else f", of at most {price(granularity, limit)}"


@dataclasses.dataclass(frozen=True)
class Allowance:
    """How many requests the receipts of each lot may add up to.

    Attributes:
      lot_to_most: lots that it lacks may ask for nothing; None for no bound.
    """

    name: str  # of the granularity
    folder: str
    lot_to_most: Mapping[str, int] | None

    def reserve(self, lot: str, n_requests: int) -> "Receipt":
        """Writes a receipt over as many requests as the lot may still make.

        Of two attempts at a lot at the same time, the later one sees the receipt of
        the first.

        Raises:
          ServiceError: if that is none.
        """
        while True:
            asked = [*_numbers(self.folder, lot)]
            n = n_requests
            if self.lot_to_most is not None:
                n_before = count_requests(self.folder, lot)[lot]
                n = min(n, self.lot_to_most.get(lot, 0) - n_before)
            if n <= 0:
                raise _used_up(self.name)
            number = max(asked, default=-1) + 1
            path = files.join(self.folder, f"{lot}.{number}.json")
            if files.create(path, _to_json(n)):
                return Receipt(self.name, path, n)


def _numbers(folder: str, lot: str) -> list[int]:
    paths = files.list_folder(folder, prefix=f"{lot}.", suffix=".json")
    names = [path.rpartition("/")[2] for path in paths]
    return [
        int(name.removesuffix(".json").rpartition(".")[2])
        for name in names
        if (found := _RECEIPT.fullmatch(name)) and found["lot"] == lot
    ]


def _to_json(n_requests: int) -> bytes:
    return json.dumps({"n_requests": n_requests}).encode() + b"\n"


def _used_up(name: str) -> ServiceError:
    return ServiceError(
        f"spend of granularity {name!r}: expected no request beyond its bound; the same"
        " command counts anew what is missing"
    )


@dataclasses.dataclass
class Receipt:
    """The requests of one attempt at a lot."""

    name: str
    path: str
    n_reserved: int
    n_asked: int = 0

    def take(self, n_requests: int) -> ServiceError | None:
        """Counts requests that are about to be made; an error if they may not be."""
        if self.n_asked + n_requests > self.n_reserved:
            return _used_up(self.name)
        self.n_asked += n_requests
        return None

    def settle(self) -> None:
        """Says what was asked for in the end."""
        files.write(self.path, _to_json(self.n_asked))


@dataclasses.dataclass(frozen=True)
class MeteredCaptioner:
    """A captioner that asks for no more than receipts allow."""

    captioner: Captioner
    name_to_receipt: Mapping[str, Receipt]  # by granularity; others are free

    @property
    def batch_size(self) -> int:
        return self.captioner.batch_size

    def prepare_image(self, rgb: np.ndarray) -> np.ndarray:
        return self.captioner.prepare_image(rgb)

    def encode(self, images: Sequence[np.ndarray]) -> Any:
        return self.captioner.encode(images)

    def caption(
        self,
        features: Any,
        prompts: Sequence[str],
        granularity: Granularity,
        keys: np.ndarray,
    ) -> Sequence[tuple[Caption, ...] | ServiceError]:
        receipt = self.name_to_receipt.get(granularity.name)
        error = receipt.take(len(prompts) * keys.shape[1]) if receipt else None
        if error:
            return [error] * len(prompts)
        return self.captioner.caption(features, prompts, granularity, keys)
