"""The check of `caption`: captioners can be read, if an image still needs them."""

from collections.abc import Iterable

from pipeline.captioning import captioner_handler
from pipeline.captioning.coverage import coverage
from pipeline.config.captions import Granularity
from pipeline.engine.run_folder import RunFolder

_MAX_COUNTED = 1_000  # shards; to count the captions of more takes longer than to check


def check(run: RunFolder, granularities: Iterable[Granularity]) -> None:
    """Raises ValueError on a captioner that is needed and cannot be read.

    No weights are read. Files of captions to import are always looked at.
    """
    for granularity in granularities:
        if granularity.captioner == "imported" or _lacks_captions(run, granularity):
            captioner_handler.check(granularity)


def _lacks_captions(run: RunFolder, granularity: Granularity) -> bool:
    """Whether kept images may lack captions, as before any decision."""
    decided = run.decisions.unit_names()
    is_decided = all(unit.name in decided for unit in run.units)
    if not is_decided or len(run.units) > _MAX_COUNTED:
        return True
    n_captioned, n_kept = coverage(run, granularity, run.units)
    return n_captioned < n_kept
