"""Ready-made granularities, to be listed in recipes.

Weights are named by their Hugging Face ids (accept the license there first); replace
`checkpoint` by a folder if you have them. PaliGemma's prompts are those of its card,
ai.google.dev/gemma/docs/paligemma.
"""

import dataclasses

from pipeline.config.captions import Granularity

# One pretrained checkpoint knows three granularities and is loaded once for all.
SHORT = Granularity(
    name="short",
    checkpoint="google/paligemma-3b-pt-224",
    prompt="cap en",  # terse, as alt text is
    max_new_tokens=24,
    batch_size=256,  # a decode step on an H200 gains nothing from more
    dtype="bfloat16",
)
MEDIUM = dataclasses.replace(
    SHORT, name="medium", prompt="caption en", max_new_tokens=48
)
DETAILED = dataclasses.replace(
    SHORT, name="detailed", prompt="describe en", max_new_tokens=128
)

# TIPS captions with PaliGemma fine-tuned on COCO captions: at 224 px, and at 448 px for
# the phase of high resolution (arXiv:2410.16512, section 4.1). Its prompt is not
# published; this is the one that the checkpoint was tuned on.
COCO = dataclasses.replace(
    SHORT,
    name="coco",
    checkpoint="google/paligemma-3b-ft-cococap-224",
    prompt="caption en",
    max_new_tokens=32,  # as in the configuration that tuned it
    n_words=(6, 25),  # 158 of COCO's own have 8 to 23
)
COCO_448 = dataclasses.replace(
    COCO,
    name="coco_448",
    checkpoint="google/paligemma-3b-ft-cococap-448",
    batch_size=64,
)

# Long descriptions: tuned on DOCCI, whose texts average 136 words (arXiv:2404.19753).
DENSE = dataclasses.replace(
    SHORT,
    name="dense",
    checkpoint="google/paligemma2-3b-ft-docci-448",
    prompt="caption en",
    max_new_tokens=256,
    batch_size=64,
)

# TIPSv2's third caption, which sees the alt text and PaliGemma's caption. The prompt is
# the authors', github.com/google-deepmind/tips/issues/38. Their model, Gemini 1.5
# Flash, is no longer served; they state no decoding and no length.
GEMINI = Granularity(
    name="gemini",
    checkpoint="gemini-2.5-flash",
    captioner="gemini",
    prompt="Based on the existing captions for the image, create a new caption that "
    "accurately describes what is in the image.\n\n"
    "Image: {image}\n\n"
    "Captions:\n1. {alt_text}\n2. {caption:coco}\n\n"
    "Return just the new caption and nothing else.",
    max_new_tokens=256,
    batch_size=32,  # requests at a time
)
