"""Granularities of the papers, for recipes to choose from."""

from pipeline.config import Granularity


def tipsv2_gemini(
    first_caption: str = "coco", model: str = "gemini-2.5-flash"
) -> Granularity:
    """TIPSv2's third caption, which sees the alt text and a first caption.

    The prompt is the authors', github.com/google-deepmind/tips/issues/38. Their model,
    Gemini 1.5 Flash, is no longer served; they state no decoding and no length.

    Args:
      first_caption: name of the granularity that PaliGemma captions.
    """
    return Granularity(
        "gemini",
        model,
        "Based on the existing captions for the image, create a new caption that "
        "accurately describes what is in the image.\n\n"
        "Image: {image}\n\n"
        f"Captions:\n1. {{alt_text}}\n2. {{caption:{first_caption}}}\n\n"
        "Return just the new caption and nothing else.",
        max_new_tokens=256,
        captioner="gemini",
        batch_size=32,  # requests at a time
    )
