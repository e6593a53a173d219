"""A recipe, a crawl and checkpoints so small that all stages take seconds."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tests.support import tiny_checkpoints
from tests.support.tiny_run import Row, write_shard

N_SHARDS, N_PAIRS = 6, 5
STAGES = ("score", "select", "caption", "export")

_RECIPE = """
from pipeline.config import captions, curation
from pipeline.selection.rules import FewWords
from pipeline.config.selection import SelectionConfig

def get_config():
    greedy = captions.Granularity("short", {captioner!r}, "caption en", 4, batch_size=2)
    decoding = captions.Decoding(temperature=1.0, n_samples=2)
    drawn = captions.Granularity(
        "drawn", {captioner!r}, "describe en", 4, decoding=decoding, batch_size=2
    )
    return curation.CurationConfig(
        encoder=curation.EncoderConfig({encoder!r}, batch_size=2),
        selection=SelectionConfig(
            drop_rules=(FewWords(min_words=2),), max_evaluation_similarity=0.9999
        ),
        granularities=(greedy, drawn),
        export=curation.ExportConfig(samples_per_shard=4),
        shards_per_lot=2,
    )
"""


def write(root: Path) -> None:
    """The crawl with broken pairs, a duplicate and an evaluation image; the recipe."""
    encoder = tiny_checkpoints.write_siglip(root / "encoder")
    captioner = tiny_checkpoints.write_paligemma(root / "captioner")
    recipe = _RECIPE.format(encoder=str(encoder), captioner=str(captioner))
    (root / "recipe.py").write_text(recipe)
    images = tiny_checkpoints.random_images(N_SHARDS * N_PAIRS)
    rows = [Row(_png(image), f"a text on image {i}") for i, image in enumerate(images)]
    write_shard(root / "evaluation" / "0.tar", [rows[7]])
    rows[3] = Row(rows[3].image[:-30], "an image cut off")
    rows[12] = Row(rows[11].image, "an image that comes twice")
    rows[20] = Row(rows[20].image, "short")
    for shard in range(N_SHARDS):
        part = rows[shard * N_PAIRS : (shard + 1) * N_PAIRS]
        write_shard(root / "crawl" / f"{shard}.tar", part)


def _png(rgb: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "PNG")
    return file.getvalue()


def arguments(command: str, root: str, output: str) -> Sequence[str]:
    """The command line; `root` and `output` may be of any file system."""
    return (
        *(command, "--config", f"{root.partition('://')[2] or root}/recipe.py"),
        *("--input", f"{root}/crawl/*.tar", "--output", output),
        *("--eval", f"evaluation={root}/evaluation/*.tar"),
    )
