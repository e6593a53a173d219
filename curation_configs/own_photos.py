"""Your own photos with your own captions: everything good is kept.

Not from the papers. Captions are trusted, so no score drops a pair. Dropped are
unreadable and tiny images, copies of one another, and copies of held-out photos; copies
are found without a model. `docs/own_photos.md` has the commands.

PaliGemma adds captions at the three granularities that `trainer/configs/demo.py` trains
on. Weights are downloaded by their Hugging Face ids (accept the license there
first); any id can be a folder instead.
"""

from curation_configs.granularities import DETAILED, MEDIUM, SHORT
from pipeline.config.curation import CurationConfig, EncoderConfig, ExportConfig
from pipeline.config.duplicates import (
    Cells,
    EvaluationDuplicates,
    PerceptualDescriptor,
    PoolDuplicates,
    Resemblance,
)
from pipeline.config.selection import SelectionConfig
from pipeline.selection.rules import SmallImage


def get_config() -> CurationConfig:
    return CurationConfig(
        encoder=EncoderConfig("google/siglip2-base-patch16-224"),
        selection=SelectionConfig(
            drop_rules=(SmallImage(min_side_px=64),),
            # Both bounds are those of docs/near_duplicates.md.
            evaluation_duplicates=EvaluationDuplicates(
                by=(Resemblance(PerceptualDescriptor(), 0.7),)
            ),
            pool_duplicates=PoolDuplicates(
                by=(Resemblance(PerceptualDescriptor(), 0.8),),
                cells=Cells(n_clusters=1),  # compares all pairs, of up to 10,000 photos
            ),
        ),
        granularities=(SHORT, MEDIUM, DETAILED),
        export=ExportConfig(samples_per_shard=1000),
    )
