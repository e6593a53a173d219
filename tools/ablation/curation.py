"""The curated crawl of the ablation: rules, alignment, unique images near the seeds.

Not from the papers. `python -m tools.ablation.run` runs it with the paths of the
captions, which come from the truth of the drawn scenes instead of a captioner.
"""

import pathlib

from pipeline.config.captions import Granularity
from pipeline.config.curation import CurationConfig, EncoderConfig, ExportConfig
from pipeline.config.selection import KeepFraction, NearSeeds, SelectionConfig
from pipeline.selection.rules import BoilerplateAltText, FewWords
from tools.ablation.texts import GRANULARITIES

_ENCODER = "curation_configs/checkpoints/tiny-siglip"
_ROOT = pathlib.Path(__file__).parents[2]


def get_config() -> CurationConfig:
    """Keeps pairs whose alt text probably describes their scene."""
    return CurationConfig(
        encoder=EncoderConfig(str(_ROOT / _ENCODER), batch_size=128),
        selection=SelectionConfig(
            drop_rules=(BoilerplateAltText(), FewWords(min_words=2)),
            # About the share of the crawl whose alt text is true of its picture.
            alignment=KeepFraction(0.6),
            # Most pictures planted off topic are further away, and 2 % of scenes.
            retrieval=NearSeeds(0.6),
        ),
        granularities=tuple(
            Granularity(name, f"captions/{name}.parquet", captioner="imported")
            for name in GRANULARITIES
        ),
        export=ExportConfig(samples_per_shard=1000),
    )
