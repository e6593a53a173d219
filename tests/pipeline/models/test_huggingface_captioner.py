"""Captioners of Hugging Face in PyTorch, on tiny random checkpoints."""

import dataclasses
import json
import shutil
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file, save_file

from pipeline.config.captions import Decoding, Granularity
from pipeline.config.prompts import IMAGE
from pipeline.models.interfaces import Caption
from pipeline.models.paligemma_captioner import PaliGemmaCaptioner
from tests.support import tiny_checkpoints

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")

from pipeline.models import huggingface_captioner  # noqa: E402 (it imports torch)

IMAGES = tiny_checkpoints.random_images(4)
PROMPTS = ("caption en", "describe en", "a", "two red circles above a blue table")
GREEDY = Granularity("g", "", captioner="huggingface", max_new_tokens=12, batch_size=4)
SAMPLED = dataclasses.replace(
    GREEDY, decoding=Decoding(temperature=1.0, top_p=0.95, n_samples=3)
)
KEYS = np.random.default_rng(0).integers(0, 1 << 32, (len(IMAGES), 3, 2), np.uint32)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}USER: {% for part in "
    "message['content'] %}{% if part['type'] == 'image' %}<image>{% else %}"
    "{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)


def of(granularity: Granularity, folder: Path, **changes: object) -> Granularity:
    return dataclasses.replace(granularity, checkpoint=str(folder), **changes)


def captions(captioner, granularity, images=IMAGES, prompts=PROMPTS, keys=KEYS):
    n_samples = granularity.decoding.n_samples
    features = captioner.encode([captioner.prepare_image(rgb) for rgb in images])
    keys = keys[: len(images), :n_samples]
    return captioner.caption(features, prompts, granularity, keys)


def assert_alike(found: list[tuple[Caption, ...]], expected) -> None:
    """The same tokens, and log-probabilities up to rounding."""
    for ours, theirs in zip(found, expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert one.mean_logprob == pytest.approx(other.mean_logprob, abs=1e-4)
            other = dataclasses.replace(other, mean_logprob=one.mean_logprob)
            assert one == other


@pytest.fixture(scope="module")
def captioner(paligemma_folder: Path) -> huggingface_captioner.HuggingFaceCaptioner:
    return huggingface_captioner.load(of(GREEDY, paligemma_folder))


@pytest.fixture(scope="module")
def llava_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat model of another family: CLIP, Llama, and a template."""
    folder = tmp_path_factory.mktemp("llava")
    # Saving a processor changes its tokenizer, which the other checkpoints share.
    tokenizer = deepcopy(tiny_checkpoints.paligemma_tokenizer())
    text = {"num_key_value_heads": 2, "vocab_size": len(tokenizer)}
    ids = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**tiny_checkpoints.VISION),
        text_config=transformers.LlamaConfig(**tiny_checkpoints.DECODER, **text, **ids),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    torch.manual_seed(0)
    model = transformers.LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    model.save_pretrained(folder)
    side = tiny_checkpoints.VISION["image_size"]
    transformers.LlavaProcessor(
        transformers.CLIPImageProcessorPil(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        ),
        tokenizer,
        patch_size=tiny_checkpoints.VISION["patch_size"],
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)
    return folder


def test_greedy_captions_equal_our_paligemma(captioner, paligemma_folder: Path):
    granularity = of(GREEDY, paligemma_folder)
    expected = captions(PaliGemmaCaptioner.load(granularity), granularity)
    found = captions(captioner, granularity)
    assert len({caption.text for (caption,) in found}) == len(IMAGES)
    assert_alike(found, expected)


@pytest.mark.parametrize("granularity", [GREEDY, SAMPLED])
def test_neighbors_and_batches_change_nothing(captioner, granularity: Granularity):
    together = captions(captioner, granularity)
    alone = [
        captions(captioner, granularity, IMAGES[i:][:1], PROMPTS[i:][:1], KEYS[i:])[0]
        for i in range(len(IMAGES))
    ]
    assert_alike(alone, together)
    reversed_ = captions(
        captioner, granularity, IMAGES[::-1], PROMPTS[::-1], KEYS[::-1]
    )
    assert_alike(reversed_[::-1], together)


def test_a_sample_depends_on_its_key(captioner):
    first = captions(captioner, SAMPLED)
    assert_alike(captions(captioner, SAMPLED), first)
    other = captions(captioner, SAMPLED, keys=KEYS + np.uint32(1))
    texts = [caption.text for row in (*first, *other) for caption in row]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize(
    "decoding", [Decoding(temperature=1e-5), Decoding(temperature=1.0, top_p=1e-6)]
)
def test_sampling_with_no_choice_is_greedy(captioner, decoding: Decoding):
    sampled = captions(captioner, dataclasses.replace(GREEDY, decoding=decoding))
    assert_alike(sampled, captions(captioner, GREEDY))


def test_tokens_are_drawn_by_their_probability():
    n_rows, probabilities = 4000, np.array([0.6, 0.3, 0.1])
    keys = np.random.default_rng(1).integers(0, 1 << 32, (n_rows, 2), np.uint32)
    choice = huggingface_captioner._Choice(keys, Decoding(temperature=2.0))
    # A temperature of 2 takes the square away.
    scores = torch.log(torch.tensor(probabilities**2)).repeat(n_rows, 1)
    left = choice(torch.zeros((n_rows, 1), dtype=torch.long), scores)
    ids, logprobs = choice.result()
    shares = np.bincount(ids[:, 0]) / n_rows
    np.testing.assert_allclose(shares, probabilities, atol=0.03)
    np.testing.assert_array_equal(left.argmax(-1), ids[:, 0])
    squares = probabilities**2 / (probabilities**2).sum()
    np.testing.assert_allclose(logprobs[:, 0], np.log(squares)[ids[:, 0]], atol=1e-5)


def test_a_caption_ends_with_its_end_token(captioner, monkeypatch: pytest.MonkeyPatch):
    """With a token that a caption has as its end, the caption is its start."""
    tokenizer = captioner.processor.tokenizer
    ((whole,), *_) = captions(captioner, GREEDY)
    ids = tokenizer(whole.text, add_special_tokens=False)["input_ids"]
    ending = dataclasses.replace(captioner, end_ids=[ids[0]])
    ((ended,), *_) = captions(ending, GREEDY)
    assert (ended.text, ended.n_tokens, ended.finish_reason) == ("", 1, "stop")
    assert whole.finish_reason == "length"


def by_hand(folder: Path, text: str, rgb: np.ndarray) -> str:
    """What Hugging Face's own generate() says to a prompt that is written out."""
    model = transformers.LlavaForConditionalGeneration.from_pretrained(folder)
    processor = transformers.LlavaProcessor.from_pretrained(folder)
    inputs = processor(
        images=[rgb], text=text, add_special_tokens=False, return_tensors="pt"
    )
    ids = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    new = ids[0, inputs["input_ids"].shape[1] :]
    return processor.tokenizer.decode(new, skip_special_tokens=True)


def test_a_chat_model_is_asked_in_its_template_with_the_image_at_its_place(
    llava_folder: Path,
):
    captioner = huggingface_captioner.load(of(GREEDY, llava_folder))
    prompts = ["describe", f"{IMAGE}describe", f"a table {IMAGE} describe", "a"]
    found = [
        caption.text for (caption,) in captions(captioner, GREEDY, IMAGES, prompts)
    ]
    expected = [
        by_hand(llava_folder, f"<bos>USER: {text} ASSISTANT:", rgb)
        for text, rgb in zip(
            (
                "<image>describe",
                "<image>describe",
                "a table <image> describe",
                "<image>a",
            ),
            IMAGES,
            strict=True,
        )
    ]
    assert found == expected
    assert len(set(found)) == len(found)


def test_an_alt_text_cannot_pose_as_an_image(llava_folder: Path, captioner):
    text = "<image> of <image> a red circle"
    for model in (huggingface_captioner.load(of(GREEDY, llava_folder)), captioner):
        ((caption,),) = captions(model, GREEDY, IMAGES[:1], [text])
        assert caption.n_tokens > 0


def test_the_filter_that_resizes_can_be_chosen(paligemma_folder: Path, captioner):
    image = np.random.default_rng(0).integers(0, 256, (1, 97, 61, 3), np.uint8)
    nearest = huggingface_captioner.load(
        of(GREEDY, paligemma_folder, resampling="nearest")
    )
    default, other = (
        model._inputs(
            [huggingface_captioner._Row(model.encode(image)[0], "a", KEYS[0, 0])]
        )
        for model in (captioner, nearest)
    )
    assert (default["pixel_values"] != other["pixel_values"]).any()


def test_bfloat16_weights_are_asked_for(paligemma_folder: Path):
    model = huggingface_captioner.load(of(GREEDY, paligemma_folder, dtype="bfloat16"))
    assert {weight.dtype for weight in model.model.parameters()} == {torch.bfloat16}
    assert len(captions(model, GREEDY)) == len(IMAGES)


@pytest.fixture
def copy(paligemma_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(paligemma_folder, tmp_path / "copy"))


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_code_of_a_checkpoint_is_refused(copy: Path):
    auto_map = {"AutoConfig": "configuration_evil.EvilConfig"}
    (copy / "configuration_evil.py").write_text("raise SystemExit('it has run')")
    edit(copy / "config.json", model_type="evil", auto_map=auto_map)
    with pytest.raises(ValueError, match=r"^checkpoint='.*its own code is refused\)$"):
        huggingface_captioner.check(of(GREEDY, copy))


def test_pickled_weights_are_refused(copy: Path):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pickled weights are refused"):
        huggingface_captioner.check(of(GREEDY, copy))


def test_a_model_without_images_or_text_is_refused(siglip_folder: Path):
    with pytest.raises(ValueError, match=r"expected a model of images .* 'siglip'"):
        huggingface_captioner.check(of(GREEDY, siglip_folder))


def test_a_checkpoint_without_a_processor_is_refused(copy: Path):
    (copy / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match=r"^checkpoint='.*': expected"):
        huggingface_captioner.check(of(GREEDY, copy))


def test_missing_weights_are_named(copy: Path):
    path = copy / "model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if name.endswith("mlp.up_proj.weight"))
    del weights[name]
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(ValueError, match=r"expected weights of .*up_proj\.weight"):
        huggingface_captioner.load(of(GREEDY, copy))


def test_weights_are_not_cut(copy: Path):
    with pytest.raises(ValueError, match=r"^n_model_shards=2: expected 1"):
        huggingface_captioner.check(of(GREEDY, copy, n_model_shards=2))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32])
def test_integers_without_a_word_on_them_are_refused(tmp_path, dtype):
    name = "language_model.layers.0.mlp.up_proj.weight"
    tensors = {name: np.zeros((4, 4), dtype), "position_ids": np.arange(4)}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=f"{name} is .*: expected floats, or a quant"):
        huggingface_captioner._check_floats(tmp_path)
    tensors[name] = tensors[name].astype(np.float16)
    save_file(tensors, tmp_path / "model.safetensors")
    huggingface_captioner._check_floats(tmp_path)
