"""DataComp small: the filters of its baselines on its pool of 12.8 million pairs.

Paper: DataComp, arXiv:2304.14108. From the paper: English, more than two words, a short
side of 200 px, an aspect of at most 3, and the best 30 % by the score of an encoder.
Its rule of more than five characters is omitted, since three words almost always have
them. Our choices: the encoder (theirs is CLIP L/14), fastText's newer model, and the
share, which is of the pairs that the filters leave (theirs is of the pool). The pool
comes without images of its evaluation sets.

    python -m pipeline.run curate --config curation_configs/datacomp_small.py \\
        --output RUN --input 'DATACOMP/shards/*.tar'
"""

from curation_configs.granularities import COCO
from pipeline.config.curation import (
    CurationConfig,
    EncoderConfig,
    ExportConfig,
    Resources,
)
from pipeline.config.selection import KeepFraction, KeepLanguages, SelectionConfig
from pipeline.selection.rules import ExtremeAspect, FewWords, SmallImage

# For Dataflow; runners on one machine ignore it.
_GPU = "type:nvidia-l4;count:1;machine_type:g2-standard-8;install-nvidia-driver"


def get_config() -> CurationConfig:
    return CurationConfig(
        encoder=EncoderConfig(
            "google/siglip2-base-patch16-224", batch_size=256, dtype="bfloat16"
        ),
        selection=SelectionConfig(
            drop_rules=(
                FewWords(min_words=3),
                SmallImage(min_side_px=200),
                ExtremeAspect(max_aspect=3.0),
            ),
            language=KeepLanguages(("en",)),
            alignment=KeepFraction(0.3),
        ),
        granularities=(COCO,),
        export=ExportConfig(samples_per_shard=10_000, max_side_px=512),
        score_workers=Resources(min_ram_gb=16, accelerator=_GPU),
        caption_workers=Resources(min_ram_gb=32, accelerator=_GPU),
    )
