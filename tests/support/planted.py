"""A model whose weights are planted: it knows colors, and pictures to show it."""

import dataclasses
import itertools
import json
import pathlib

import jax
import numpy as np
import orbax.checkpoint as ocp
from PIL import Image
from scipy import linalg

from trainer import tokenizer
from trainer.config import TextConfig, VisionConfig
from trainer.data.text_tokenizer import Tokenizer
from trainer.evals.scores import zero_shot_classification as prompting
from trainer.evaluation_config import PromptSet
from trainer.loop import workdir
from trainer.models import two_tower

COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
WIDTH = 16
DIRECTIONS = linalg.hadamard(WIDTH)[1:5].astype(np.float32)  # of colors, and of words
PATCH = 14


def write_words(path: pathlib.Path) -> pathlib.Path:
    """A tokenizer to which the names of colors are words."""
    texts = [s for which in PromptSet for s in prompting.prompts([*COLORS], which)]
    path.write_bytes(tokenizer.train_vocabulary(texts * 5, 64))
    return path


def configured(tiny, words):
    sizes = {"width": WIDTH, "n_layers": 1, "n_heads": 2, "mlp_dim": 24}
    model = dataclasses.replace(
        tiny.model,
        vision=VisionConfig(**sizes, position_grid=(2, 2)),
        text=TextConfig(**sizes, vocabulary_size=64, max_tokens=32),
    )
    data = dataclasses.replace(tiny.data, tokenizer=str(words))
    return dataclasses.replace(tiny, model=model, data=data)


def planted(config):
    """A patch points in the direction of its mean color, and so does its name."""
    params = two_tower.init_params(config.model, 0)
    silent = jax.tree.map(np.zeros_like, params)
    encoder = silent["vision"]["encoder"]
    kernel = np.broadcast_to(DIRECTIONS[:3], (PATCH, PATCH, 3, WIDTH)) / PATCH**2
    encoder["ToTokenSequence_0"]["embedding"]["kernel"] = kernel.astype(np.float32)
    encoder["encoder_norm"] = params["vision"]["encoder"]["encoder_norm"]
    silent["text"]["text_encoder_norm"] = params["text"]["text_encoder_norm"]
    silent["text"]["token_emb"]["emb_var"] = 100 * _embeddings(config)
    return silent


def _embeddings(config):
    """Embeddings: a word that only one color's sentences have gets its direction."""
    read = Tokenizer(config.data.tokenizer, config.model.text.max_tokens)
    used = {
        name: set(read(prompting.prompts([name], PromptSet.TCL)).ravel().tolist())
        for name in COLORS
    }
    table = np.tile(DIRECTIONS[3], (config.model.text.vocabulary_size, 1))
    for number, (name, ids) in enumerate(used.items()):
        others = set().union(*(i for other, i in used.items() if other != name))
        assert ids - others
        table[sorted(ids - others)] = DIRECTIONS[number]
    return table


def save(folder, config, params):
    workdir.claim(folder, config, "shards")
    with ocp.CheckpointManager((folder / workdir.CHECKPOINTS).absolute()) as manager:
        items = ocp.args.Composite(params=ocp.args.StandardSave(params))
        manager.save(0, args=items)
    return folder


def stripes(number, n_columns):
    """Columns of colors, a patch each, and the class of each pixel."""
    rng = np.random.default_rng(number)
    grid = np.stack([rng.permutation(3)[[0, 1, 2, 0]][:n_columns]] * 2)
    mask = grid.repeat(PATCH, 0).repeat(PATCH, 1)
    return np.array([*COLORS.values()], np.uint8)[mask], mask.astype(np.uint8)


def draw(root, n_columns):
    """Stripes with masks, depths and normals that follow from their colors."""
    names = ("images", "masks", "depth", "normals")
    for name, split in itertools.product(names, ("train", "val")):
        (root / name / split).mkdir(parents=True)
    for number, split in enumerate(["train"] * 8 + ["val"] * 3):
        image, mask = stripes(number, n_columns)
        Image.fromarray(image).save(root / f"images/{split}/{number}.png")
        Image.fromarray(mask + 1).save(root / f"masks/{split}/{number}.png")
        np.save(root / f"depth/{split}/{number}.npy", 2.0 + 3 * mask)
        np.save(root / f"normals/{split}/{number}.npy", np.eye(3)[mask])
    # Without a mask and the rest: it is left out.
    Image.fromarray(stripes(99, n_columns)[0]).save(root / "images/val/99.png")
    (root / "classes.json").write_text(json.dumps([*COLORS]))
    return root
