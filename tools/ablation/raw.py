"""The same crawl without curation: every readable pair becomes a training sample."""

import dataclasses

from pipeline.config.curation import CurationConfig
from pipeline.config.selection import SelectionConfig
from tools.ablation import curation


def get_config() -> CurationConfig:
    """Drops nothing."""
    return dataclasses.replace(
        curation.get_config(),
        selection=SelectionConfig(drop_exact_duplicates=False),
    )
