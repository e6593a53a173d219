"""The check of `caption`: captioners can be read, if an image still needs them."""

from collections.abc import Iterable

from pipeline.captioning import captioner_handler
from pipeline.captioning.coverage import find_incomplete
from pipeline.config.captions import Granularity
from pipeline.engine.run_folder import RunFolder


def check(run: RunFolder, granularities: Iterable[Granularity]) -> None:
    """Raises ValueError on a captioner that is needed and cannot be read.

    No weights are read. Files of captions to import are always looked at.
    """
    for granularity in find_incomplete(run, granularities):
        captioner_handler.check(granularity)
