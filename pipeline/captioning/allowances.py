"""Divides the bounds of paid captions over lots, before a job begins.

In: the bounds of a recipe, what was asked for before, and the captions that are
missing. Out: what each lot may ask for, or an error if the missing ones may cost more.
"""

import collections
from collections.abc import Sequence

from pipeline.captioning import spending
from pipeline.captioning.missing import Count, count_missing
from pipeline.captioning.spending import Allowance
from pipeline.config.captions import Granularity
from pipeline.engine.run_folder import RunFolder


def allow(run: RunFolder, granularities: Sequence[Granularity]) -> dict[str, Allowance]:
    """What each granularity may ask for whose requests are counted.

    What a bound leaves beyond the missing captions is shared among the lots that lack
    some, for attempts that are made twice.

    Raises:
      ValueError: if the missing captions may exceed a bound.
    """
    metered = [one for one in granularities if one.is_metered]
    is_bounded = any(one.spend.limit is not None for one in metered)
    counts = count_missing(run, granularities) if is_bounded else {}
    return {one.name: _allowance(run, one, counts.get(one)) for one in metered}


def _allowance(
    run: RunFolder, granularity: Granularity, count: Count | None
) -> Allowance:
    folder = spending.receipts_folder(run, granularity)
    limit = granularity.spend.limit
    if count is None or limit is None:
        return Allowance(granularity.name, folder, None)
    asked = spending.count_requests(folder)
    if reason := excess(granularity, count, asked.total()):
        raise ValueError(reason)
    n_missing = n_requests(granularity, count)
    spare = limit - asked.total() - n_missing
    share = spare // max(len(count.lot_to_n), 1)
    n_samples = granularity.decoding.n_samples
    lot_to_most = collections.Counter(
        {lot: n * n_samples + share for lot, n in count.lot_to_n.items()}
    )
    for lot in lot_to_most:
        lot_to_most[lot] += asked[lot]
    return Allowance(granularity.name, folder, dict(lot_to_most))


def n_requests(granularity: Granularity, count: Count) -> int:
    """Requests for the missing captions of a granularity."""
    return count.lot_to_n.total() * granularity.decoding.n_samples


def excess(granularity: Granularity, count: Count, n_asked: int) -> str:
    """Why missing captions exceed the bound of their granularity; "" if they do not."""
    limit, n_missing = granularity.spend.limit, n_requests(granularity, count)
    if limit is None or n_asked + n_missing <= limit:
        return ""
    missing = spending.price(granularity, n_missing)
    most = "" if count.is_exact else "up to "
    return (
        f"spend of granularity {granularity.name!r}: {most}{missing} are missing after"
        f" {n_asked:,} before: expected at most {spending.price(granularity, limit)} in"
        " all; raise the bound or keep fewer pairs"
    )
