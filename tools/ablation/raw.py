"""The same crawl as it is: whatever can be read becomes a training sample."""

import dataclasses

from pipeline.config import CurationConfig
from pipeline.selection_config import SelectionConfig
from tools.ablation import curation


def get_config() -> CurationConfig:
    return dataclasses.replace(
        curation.get_config(),
        selection=SelectionConfig(drop_exact_duplicates=False),
    )
