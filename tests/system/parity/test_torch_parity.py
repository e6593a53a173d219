"""Our models against Hugging Face's torch ones, on the same tiny random checkpoints."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
import transformers
from flax import nnx

from pipeline.config.captions import Granularity
from pipeline.models.encoders import SiglipEncoder
from pipeline.models.image_preparation import ImagePreparation
from pipeline.models.paligemma import PaliGemma, Prompt, keep_likeliest
from pipeline.models.paligemma_captioner import PaliGemmaCheckpoint, PromptTokens
from pipeline.models.weights import load_config, load_module
from tests.support import goldens, tiny_checkpoints
from tests.support.goldens import Question

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")
hugging_face = pytest.importorskip("tests.system.parity.hugging_face")

IMAGES = tiny_checkpoints.random_images(4)


def normalized(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoints.write_siglip(tmp_path_factory.mktemp("siglip"))


@pytest.fixture(scope="module", params=["gemma", "gemma2"])
def paligemma(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / request.param
    return tiny_checkpoints.write_paligemma(folder, request.param)


def test_image_embeddings_equal_hugging_face(siglip: Path):
    model = transformers.SiglipModel.from_pretrained(siglip)
    processor = transformers.AutoImageProcessor.from_pretrained(siglip)
    pixels = processor(images=list(IMAGES), return_tensors="pt")
    with torch.no_grad():
        reference = model.get_image_features(**pixels).pooler_output.numpy()
    ours = SiglipEncoder.load(str(siglip), 3, "float32").encode_images(IMAGES)
    assert np.abs(ours @ ours.T - np.eye(4)).max() > 1e-3
    np.testing.assert_allclose(ours, normalized(reference), atol=1e-5)


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
    np.testing.assert_allclose(ours, normalized(reference), atol=1e-5)


def loaded(folder: Path) -> tuple[nnx.GraphDef[PaliGemma], nnx.State]:
    config = load_config(folder, transformers.PaliGemmaConfig)
    return load_module(lambda rngs: PaliGemma(config, rngs=rngs), folder, "float32")


@pytest.mark.parametrize("question", goldens.QUESTIONS, ids=lambda q: q.name)
def test_goldens_are_what_hugging_face_answers(paligemma: Path, question: Question):
    output = hugging_face.generated(paligemma, question)
    name = goldens.checkpoint_name(paligemma.name, rng_seed=0)
    assert hugging_face.padded(output).tolist() == goldens.read()[name][question.name]


@pytest.mark.parametrize("question", goldens.QUESTIONS, ids=lambda q: q.name)
def test_first_logits_equal_hugging_face(paligemma: Path, question: Question):
    reference = hugging_face.generated(paligemma, question).logits[0].numpy()
    reference = reference[:: question.n_samples]
    model = nnx.merge(*loaded(paligemma))
    preparation = ImagePreparation.load(paligemma)
    tokens = PromptTokens.load(paligemma)
    prompt_ids = [tokens.ids(prompt) for prompt in question.prompts]
    ids = np.zeros((len(prompt_ids), 20), np.int32)
    for row, prompt in zip(ids, prompt_ids, strict=True):
        row[: len(prompt)] = prompt

    @jax.jit
    def first_logits(images: jax.Array) -> jax.Array:
        features = model.image_features(preparation.normalize(images))
        prompt = Prompt(ids, np.array(list(map(len, prompt_ids))))
        return model.prefill(features, prompt)[0]

    logits = first_logits(goldens.IMAGES)
    assert np.abs(reference).max() > 1
    np.testing.assert_allclose(logits, reference, atol=1e-4)


def test_nucleus_keeps_what_hugging_face_keeps():
    logits = np.random.default_rng(0).normal(0, 3, (50, 40)).astype(np.float32)
    for top_p in (0.05, 0.5, 0.9, 0.999):
        warper = transformers.TopPLogitsWarper(top_p)
        expected = warper(None, torch.tensor(logits)).numpy()
        np.testing.assert_array_equal(keep_likeliest(logits, top_p), expected)


def test_folders_written_by_hugging_face_are_read(paligemma: Path, tmp_path: Path):
    model = transformers.PaliGemmaForConditionalGeneration.from_pretrained(paligemma)
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    (_, ours), (_, theirs) = loaded(paligemma), loaded(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


TABLE = "language_model.model.embed_tokens.weight"
HEAD = "language_model.lm_head.weight"


@pytest.mark.parametrize("said", [None, False, True])
@pytest.mark.parametrize("stored", ["other", "same", "alone"])
def test_an_output_head_is_used_as_hugging_face_does(
    paligemma: Path, tmp_path: Path, stored: str, said: bool | None
):
    """`said` is what config.json says of tied tables; None says nothing."""
    folder = shutil.copytree(paligemma, tmp_path / "copy")
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    table = tensors[TABLE]
    tensors[HEAD] = np.roll(table, 7, axis=0) if stored == "other" else table.copy()
    if stored == "alone":
        del tensors[TABLE]
    path = folder / "model.safetensors"
    safetensors.numpy.save_file(tensors, path, {"format": "pt"})
    values = json.loads((folder / "config.json").read_text())
    values.pop("tie_word_embeddings", None)
    values |= {} if said is None else {"tie_word_embeddings": said}
    (folder / "config.json").write_text(json.dumps(values))
    granularity = Granularity("medium", str(folder), "caption en", max_new_tokens=4)
    if stored == "alone" and said is False:
        with pytest.raises(ValueError, match=r"expected both embed_tokens\.weight"):
            PaliGemmaCheckpoint.open(granularity)
        return
    opened = PaliGemmaCheckpoint.open(granularity)
    assert opened.has_own_head == (stored == "other")
    model = nnx.merge(*load_module(opened.build, folder, "float32"))
    theirs = transformers.PaliGemmaForConditionalGeneration.from_pretrained(folder)
    np.testing.assert_array_equal(
        getattr(
            model.language_model, "lm_head", model.language_model.embed_tokens
        ).weight[...],
        theirs.lm_head.weight.detach().numpy(),
    )
    np.testing.assert_array_equal(
        model.language_model.embed_tokens.weight[...],
        theirs.get_input_embeddings().weight.detach().numpy(),
    )
