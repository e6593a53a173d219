"""TIPSv2: the pairs of TIPS with a second synthetic caption, written by Gemini.

Paper: TIPSv2, arXiv:2604.12012: the data of TIPS with PaliGemma's captions, and one
more caption of each image by Gemini 1.5 Flash, which saw the image, the alt text and
PaliGemma's caption. That model is no longer served; `granularities.GEMINI` names its
successor. Gemini needs the extra [gemini] and a key, and each image is a paid request.

    python -m pipeline.run curate --config curation_configs/tipsv2.py --output RUN \\
        --input 'CRAWL/*.tar' --eval coco='COCO/*.tar' --seeds imagenet='IN/*.parquet'
"""

import dataclasses

from curation_configs import tips
from curation_configs.granularities import COCO, GEMINI
from pipeline.config.curation import CurationConfig


def get_config() -> CurationConfig:
    return dataclasses.replace(tips.get_config(), granularities=(COCO, GEMINI))
