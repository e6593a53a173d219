"""Several devices, real for XLA, embed and caption as one does; weights may be cut over
them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.models.gemma import GemmaConfig, cut_axis
from tests.support import tiny_checkpoints

# Prints captions of 20 images, drawn and greedy, as JSON; needs a fresh interpreter, as
# the number of devices is fixed when JAX starts.
PROGRAM = """
import dataclasses, json, sys
import numpy as np
from pipeline.config.captions import Decoding, Granularity
from pipeline.models.paligemma_captioner import PaliGemmaCaptioner
from tests.support import tiny_checkpoints

folder, n_model_shards, batch_size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
greedy = Granularity("", folder, batch_size=batch_size, max_new_tokens=8,
                     n_model_shards=n_model_shards)
drawn = dataclasses.replace(
    greedy, decoding=Decoding(temperature=1.0, top_p=0.9, n_samples=2))
captioner = PaliGemmaCaptioner.load(greedy)
features = captioner.encode(tiny_checkpoints.random_images(20))
keys = np.random.default_rng(0).integers(0, 1 << 32, (20, 2, 2), np.uint32)
prompts = ["caption en", "two red circles"] * 10
found = [
    captioner.caption(features, prompts, g, keys[:, : g.decoding.n_samples])
    for g in (greedy, drawn)
]
print(json.dumps(dict(
    captions=[
        [[(c.text, c.mean_logprob) for c in row] for row in rows] for rows in found
    ],
    shards=len(features.batches[0].sharding.device_set),
)))
"""


# Prints a digest of the embeddings of 23 images and texts, and what computed them.
ENCODE = """
import hashlib, json, sys
from pipeline.config.curation import EncoderConfig
from pipeline.models import encoders
from tests.support import tiny_checkpoints

encoder = encoders.load_encoder(EncoderConfig(sys.argv[1], batch_size=3))
images, texts = tiny_checkpoints.random_images(23), [f"text {n}" for n in range(23)]
found = encoder.encode_images(images).tobytes() + encoder.encode_texts(texts).tobytes()
rows = encoder.placement.rows(images[:encoder.batch_size])
shards = encoder.embed_images(rows).addressable_shards
print(json.dumps(dict(
    digest=hashlib.sha256(found).hexdigest(),
    n_rows=[len(one.data) for one in shards],
    n_devices=len({one.device for one in shards}),
)))
"""


def captions(
    folder: Path, n_devices: int, n_model_shards: int = 1, batch_size: int = 2
) -> dict:
    arguments = (str(folder), str(n_model_shards), str(batch_size))
    return run_program(PROGRAM, n_devices, *arguments)


def run_program(program: str, n_devices: int, *arguments: str) -> dict:
    flags = f"--xla_force_host_platform_device_count={n_devices}"
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=os.environ | {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {flags}"},
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def texts(found: dict) -> list:
    return [[text for text, _ in row] for rows in found["captions"] for row in rows]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gemma2")
    return tiny_checkpoints.write_paligemma(path, "gemma2")


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict:
    return captions(folder, n_devices=1)


def test_four_devices_embed_as_one(tmp_path: Path):
    path = str(tiny_checkpoints.write_siglip(tmp_path))
    alone, four = (run_program(ENCODE, n_devices, path) for n_devices in (1, 4))
    assert (alone["n_devices"], alone["n_rows"]) == (1, [3])
    assert (four["n_devices"], four["n_rows"]) == (4, [3, 3, 3, 3])
    assert four["digest"] == alone["digest"]


@pytest.mark.slow
def test_eight_devices_caption_as_one(folder: Path, alone: dict):
    eight = captions(folder, n_devices=8)
    assert (alone["shards"], eight["shards"]) == (1, 8)
    assert len({text for row in texts(alone) for text in row}) > 40
    assert eight["captions"] == alone["captions"]


@pytest.mark.slow
@pytest.mark.parametrize("n_model_shards", [2, 4])
def test_weights_cut_over_devices_give_the_same_texts(
    folder: Path, alone: dict, n_model_shards: int
):
    assert texts(captions(folder, 8, n_model_shards)) == texts(alone)


def test_the_published_models_can_be_cut():
    config = tiny_checkpoints.paligemma_config("gemma2").text_config
    config.num_attention_heads, config.num_key_value_heads = 32, 16
    config.intermediate_size, config.vocab_size = 36_864, 257_216  # of 27B
    gemma = GemmaConfig.from_hugging_face(config)
    layer = "language_model.layers.0."
    name_to_axis = {
        f"{layer}self_attn.q_proj.weight": 0,
        f"{layer}self_attn.v_proj.weight": 0,
        f"{layer}self_attn.o_proj.weight": 1,
        f"{layer}mlp.up_proj.weight": 0,
        f"{layer}mlp.down_proj.weight": 1,
        f"{layer}input_layernorm.weight": None,
        "language_model.embed_tokens.weight": 0,
        "vision_tower.encoder.layers.0.self_attn.q_proj.weight": None,
    }
    found = {name: cut_axis(name, gemma, 8) for name in name_to_axis}
    assert found == name_to_axis


def test_a_number_of_shards_that_does_not_fit_is_refused():
    config = tiny_checkpoints.paligemma_config("gemma").text_config
    gemma = GemmaConfig.from_hugging_face(config)
    with pytest.raises(ValueError, match="n_model_shards=3: expected a divisor of the"):
        cut_axis("language_model.norm.weight", gemma, 3)
