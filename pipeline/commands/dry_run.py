"""The flag `--dry-run`: what a command would make, and what captions would cost.

In: a run that passed its checks. Out: lines; nothing is written and no model runs.
"""

from collections.abc import Iterator, Sequence

from pipeline.captioning import allowances, spending
from pipeline.captioning.missing import Count, count_missing
from pipeline.commands.recorded_changes import describe_missing
from pipeline.config.captions import Granularity
from pipeline.engine.run_folder import RunFolder
from pipeline.selection import ledger


def describe(
    run: RunFolder, granularities: Sequence[Granularity], *, with_stages: bool
) -> Iterator[str]:
    """Yields a line of what stages would make, and one on each granularity."""
    if with_stages:
        missing = ", ".join(describe_missing(run)) or "nothing"
        yield f"would be made: {missing}"
    if not ledger.is_complete(run):
        yield "captions: not known before `select` has decided"
        return
    counts = count_missing(run, granularities)
    for granularity in granularities:
        if granularity not in counts:
            yield f"{granularity.name}: imported, no request"
            continue
        count = counts[granularity]
        yield f"{granularity.name}: {_cost(granularity, count)}"
        if spent := spending.describe(run, granularity):
            yield f"  {spent}"
            folder = spending.receipts_folder(run, granularity)
            n_asked = spending.count_requests(folder).total()
            if reason := allowances.excess(granularity, count, n_asked):
                yield f"  would be refused: {reason}"


def _cost(granularity: Granularity, count: Count) -> str:
    """Images, requests, their price and a bound on new tokens."""
    n_requests = allowances.n_requests(granularity, count)
    n_tokens = n_requests * granularity.max_new_tokens
    most = "" if count.is_exact else "up to "
    cost = spending.price(granularity, n_requests)
    return f"{most}{count.n_images:,} images, {cost}, at most {n_tokens:,} new tokens"
