"""Our models against Hugging Face's torch ones, on the same tiny random checkpoints."""

from pathlib import Path

import jax
import numpy as np
import pytest
import transformers
from flax import nnx

from pipeline.models.captioners import PaliGemmaCaptioner, PromptTokens
from pipeline.models.encoders import SiglipEncoder
from pipeline.models.paligemma import PaliGemma
from pipeline.models.preparation import ImagePreparation
from pipeline.models.weights import load_config, load_module
from tests import tiny_checkpoints

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")

PROMPTS = ("caption en", "describe en", "two red circles")
IMAGES = tiny_checkpoints.random_images(4)
N_NEW_TOKENS = 16


def normalised(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoints.write_siglip(tmp_path_factory.mktemp("siglip"))


@pytest.fixture(scope="module", params=["gemma", "gemma2"])
def paligemma(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    return tiny_checkpoints.write_paligemma(folder, request.param)


def test_image_embeddings_equal_hugging_face(siglip: Path):
    model = transformers.SiglipModel.from_pretrained(siglip)
    processor = transformers.AutoImageProcessor.from_pretrained(siglip)
    pixels = processor(images=list(IMAGES), return_tensors="pt")
    with torch.no_grad():
        reference = model.get_image_features(**pixels).pooler_output.numpy()
    ours = SiglipEncoder.load(str(siglip), 3, "float32").encode_images(IMAGES)
    assert np.abs(ours @ ours.T - np.eye(4)).max() > 1e-3
    np.testing.assert_allclose(ours, normalised(reference), atol=1e-5)


def test_text_embeddings_equal_hugging_face(siglip: Path):
    texts = ["a red circle", "", "Two GREEN triangles é", "a red circle " * 30]
    model = transformers.SiglipModel.from_pretrained(siglip)
    tokenizer = transformers.AutoTokenizer.from_pretrained(siglip)
    ids = tokenizer(
        texts,
        padding="max_length",
        truncation=True,
        max_length=model.config.text_config.max_position_embeddings,
        return_tensors="pt",
    )
    with torch.no_grad():
        reference = model.get_text_features(**ids).pooler_output.numpy()
    ours = SiglipEncoder.load(str(siglip), 3, "float32").encode_texts(texts)
    np.testing.assert_allclose(ours, normalised(reference), atol=1e-5)


def loaded(folder: Path) -> tuple[nnx.GraphDef[PaliGemma], nnx.State]:
    config = load_config(folder, transformers.PaliGemmaConfig)
    return load_module(lambda rngs: PaliGemma(config, rngs=rngs), folder, "float32")


def generated(folder: Path, prompt: str) -> "transformers.utils.ModelOutput":
    """Greedy tokens and logits of Hugging Face's own generate()."""
    model = transformers.PaliGemmaForConditionalGeneration.from_pretrained(
        folder, attn_implementation="eager"
    )
    processor = transformers.PaliGemmaProcessor(
        transformers.AutoImageProcessor.from_pretrained(folder),
        transformers.AutoTokenizer.from_pretrained(folder),
    )
    inputs = processor(
        images=list(IMAGES),
        text=["<image>" + prompt] * len(IMAGES),
        return_tensors="pt",
    )
    inputs.pop("labels", None)
    return model.generate(
        **inputs,
        max_new_tokens=N_NEW_TOKENS,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )


def test_first_logits_equal_hugging_face(paligemma: Path):
    reference = generated(paligemma, PROMPTS[0]).logits[0].numpy()
    model = nnx.merge(*loaded(paligemma))
    preparation = ImagePreparation.load(paligemma)
    prompt = PromptTokens.load(paligemma).repeated_prompt(PROMPTS[0], len(IMAGES))

    @jax.jit
    def first_logits(images: jax.Array) -> jax.Array:
        features = model.image_features(preparation.normalised(images))
        return model.prefill(features, prompt, n_free_slots=0)[0]

    logits = first_logits(IMAGES)
    assert np.abs(reference).max() > 1
    np.testing.assert_allclose(logits, reference, atol=1e-4)


def test_folders_written_by_hugging_face_are_read(paligemma: Path, tmp_path: Path):
    model = transformers.PaliGemmaForConditionalGeneration.from_pretrained(paligemma)
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    (_, ours), (_, theirs) = loaded(paligemma), loaded(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_captions_equal_hugging_face(paligemma: Path, prompt: str):
    reference = generated(paligemma, prompt)
    expected = reference.sequences[:, -N_NEW_TOKENS:].numpy()
    captioner = PaliGemmaCaptioner.load(str(paligemma), len(IMAGES), "float32")
    (features,) = captioner.encode(IMAGES).batches
    rows = captioner.tokens.repeated_prompt(prompt, len(IMAGES))
    answer = captioner.answer_batch(
        features, rows, np.ones(len(IMAGES), bool), max_new_tokens=N_NEW_TOKENS
    )
    assert len(np.unique(expected, axis=0)) == len(IMAGES)
    np.testing.assert_array_equal(jax.device_get(answer.ids), expected)
    chosen = np.stack(
        [step.log_softmax(-1).max(-1).values for step in reference.logits]
    )
    np.testing.assert_allclose(answer.logprob, chosen.sum(0), atol=1e-4)
