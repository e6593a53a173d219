"""TIPS: English pairs near curated seeds, captioned by PaliGemma, without test images.

Paper: TIPS, arXiv:2410.16512, section 4.1. The authors kept 117 million of 10 billion
pairs of a web crawl that is not public; they publish the order of the steps, but no
threshold and no model of the filters. So the values below are other people's, each with
its source: check them against the histograms of your own crawl.

    python -m pipeline.run curate --config curation_configs/tips.py --output RUN \\
        --input 'CRAWL/*.tar' --eval coco='COCO/*.tar' --seeds imagenet='IN/*.parquet'

The captioner is the paper's: PaliGemma fine-tuned on COCO captions, at 224 px. Weights
are downloaded by their Hugging Face ids (accept the license there first); any id can be
a folder instead.
"""

from curation_configs.granularities import COCO
from pipeline.config.curation import (
    CurationConfig,
    EncoderConfig,
    ExportConfig,
    Resources,
)
from pipeline.config.selection import (
    KeepFraction,
    KeepLanguages,
    NearSeeds,
    SelectionConfig,
)
from pipeline.selection.rules import (
    BoilerplateAltText,
    ExtremeAspect,
    FewWords,
    SmallImage,
)

# For Dataflow; runners on one machine ignore it.
_GPU = "type:nvidia-l4;count:1;machine_type:g2-standard-8;install-nvidia-driver"


def get_config() -> CurationConfig:
    return CurationConfig(
        encoder=EncoderConfig(
            "google/siglip2-base-patch16-224", batch_size=256, dtype="bfloat16"
        ),
        selection=SelectionConfig(
            drop_rules=(
                FewWords(min_words=3),  # DataComp: more than two words
                BoilerplateAltText(),
                SmallImage(min_side_px=200),  # DataComp
                ExtremeAspect(max_aspect=3.0),  # DataComp
            ),
            language=KeepLanguages(("en",)),
            # DataComp keeps the best 30 %. A share carries over between encoders, an
            # absolute score does not.
            alignment=KeepFraction(0.3),
            # A cautious guess for SigLIP: a miss spoils an evaluation, a false alarm
            # costs one image. Measure it with planted copies.
            max_evaluation_similarity=0.9,
            retrieval=NearSeeds(0.6),  # a guess: TIPS keeps 7 % at this step
        ),
        granularities=(COCO,),
        export=ExportConfig(samples_per_shard=10_000, max_side_px=512),
        # PaliGemma's 3 billion weights are 12 GB of float32 on their way to the GPU.
        score_workers=Resources(min_ram_gb=16, accelerator=_GPU),
        caption_workers=Resources(min_ram_gb=32, accelerator=_GPU),
    )
