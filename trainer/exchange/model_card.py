"""The model card: what a model is, what it was trained on, how to load it.

It states what the run recorded and nothing else. It chooses no license: that is for the
owner of the weights, and the card says so.
"""

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from pipeline.records import VERSION
from trainer.config import Ema, Text, TrainConfig, Weights
from trainer.config_files import to_dict
from trainer.exchange import onnx_graph, stablehlo
from trainer.exchange.exported_weights import Arrays, ExportedWeights, exported_text
from trainer.exchange.formats import READ, Format
from trainer.loop import workdir

_HF = """\
```python
from transformers import AutoModel, AutoProcessor  # 5.14 or newer

model = AutoModel.from_pretrained("FOLDER")
processor = AutoProcessor.from_pretrained("FOLDER")
```"""
_IMAGE_ENCODER = """\
The image encoder alone: `images` is float32, `[batch, 3, side, side]`, `cls` is
`[batch, 2, width]`, `patches` is `[batch, rows * columns, width]`, row by row."""
_FORMAT_TO_LOADING = {
    Format.HF: f"""\
{_HF}

`pooler_output` of the image encoder is CLS 1, `last_hidden_state[:, 1]` is CLS 2, and
patches follow.""",
    Format.SCENIC: """\
The official Scenic code of google-deepmind/tips reads `tips_vision.npz` and
`tips_text.npz` (`tips.scenic.utils.checkpoint.load_checkpoint`).""",
    Format.PYTORCH: """\
The official PyTorch code of google-deepmind/tips reads `tips_vision.npz` and
`tips_text.npz`. It computes the exact GELU where training has its tanh approximation,
and normalizes texts with an epsilon of 1e-5 where training has 1e-6.""",
    Format.ONNX: f"""\
```python
import onnxruntime

session = onnxruntime.InferenceSession("FOLDER/{onnx_graph.FILE}")
cls, patches = session.run(None, {{"pixel_values": images}})
```

{_IMAGE_ENCODER}""",
    Format.STABLEHLO: f"""\
```python
import jax.export
import safetensors.numpy

program = open("FOLDER/{stablehlo.FILE}", "rb").read()
weights = safetensors.numpy.load_file("FOLDER/{stablehlo.WEIGHTS}")
cls, patches = jax.export.deserialize(program).call(weights, images)
```

{_IMAGE_ENCODER}""",
}


def render_card(model: ExportedWeights, form: Format, training: str) -> str:
    """Returns Markdown with the header that Hugging Face reads."""
    vision, text = model.model.vision, model.model.text
    rows, columns = vision.position_grid
    return f"""\
---
{"library_name: transformers" if form is Format.HF else "tags: [tips]"}
pipeline_tag: {_pipeline(form)}
---

# TIPS model, {vision.width} wide, {vision.n_layers} + {text.n_layers} layers

An image encoder with two CLS tokens and a text encoder, trained with an open
re-creation of TIPS ([arXiv:2410.16512](https://arxiv.org/abs/2410.16512)) and TIPSv2
([arXiv:2604.12012](https://arxiv.org/abs/2604.12012)). These are not the authors'
weights, unless the section on training says so. Written by version {VERSION}.

| | image encoder | text encoder |
| --- | --- | --- |
| parameters | {_count(model.vision):,} | {_count(model.text):,} |
| width, layers, heads | {vision.width}, {vision.n_layers}, {vision.n_heads} | \
{text.width}, {text.n_layers}, {text.n_heads} |
| MLP | {vision.mlp_dim}, {vision.feed_forward} | {text.mlp_dim}, {text.feed_forward} |
| input | {model.size_px} px, patches of {vision.patch_size_px} px, {rows} x {columns} \
learned positions | {text.max_tokens} tokens of {text.vocabulary_size:,} |

Images are RGB in [0, 1] without any other normalization. Texts are lower-cased, without
begin and end tokens, padded with id 0. Cosines are divided by the temperature,
{float(model.temperature):.6g}.

## Loading

{_FORMAT_TO_LOADING[form]}

## Training

{training}

## License

Not stated. It is for the owner of these weights to choose one, with the rights in the
training data in mind, and to write it here.
"""


def _pipeline(form: Format) -> str:
    """What Hugging Face lists it for."""
    return (
        "zero-shot-image-classification" if form in READ else "image-feature-extraction"
    )


def describe_run(
    config: TrainConfig, folder: pathlib.Path, step: int, weights: Weights
) -> str:
    """Returns how a workdir's model was trained, from what it recorded."""
    data = config.data
    shares = ", ".join(f"{k} {v:g}" for k, v in data.granularity_weights.items())
    text_to_name = {
        Text.ALT_TEXT: "alt texts",
        Text.SYNTHETIC_CAPTION: f"synthetic captions ({shares or 'alt texts'})",
    }
    pairs = "; ".join(
        f"CLS {pair.token} saw {text_to_name[pair.text]}" for pair in config.contrastive
    )
    if pairs:
        text = text_to_name[exported_text(config.contrastive)]
        pairs += f"; the temperature is that of the {text}"
    encoder = (
        "the average that taught" if weights is Weights.TEACHER else "the student's"
    )
    values = json.dumps(_shareable_config(config), indent=2)
    return f"""\
{step:,} of {config.n_steps:,} steps of {data.batch_size:,} images, \
{step * data.batch_size:,} in all, in crops of {data.global_crop.size_px} px.

- Data: training shards with the fingerprint `{workdir.shards_fingerprint(folder)}`.
- {pairs or "No text was seen"}.
- Image encoder: {encoder}.
- Contrastive loss: {config.model.contrastive_loss}. \
{_self_supervision(config)}

<details><summary>Configuration</summary>

```json
{values}
```

</details>"""


def describe_import(path: pathlib.Path) -> str:
    """Returns the same for a model that was only converted."""
    return f"Converted from `{path.name}`, which does not say how it was trained."


def _self_supervision(config: TrainConfig) -> str:
    ssl = config.self_supervision
    if not ssl.is_on:
        return "No self-supervision."
    teacher = {
        Ema.FULL: "an average of encoder and head",
        Ema.HEAD: "the encoder itself with an average of the head",
        Ema.FROZEN: "another model, frozen",
    }[ssl.ema]
    return (
        f"Self-supervision: distillation x {ssl.distillation_weight:g} and"
        f" {ssl.patch_loss} x {ssl.patch_weight:g}; the teacher is {teacher}."
    )


def _shareable_config(config: TrainConfig) -> Mapping[str, Any]:
    """The configuration without `run` and `compute`, and without local paths."""
    values = to_dict(config)
    del values["run"], values["compute"]
    values["data"]["tokenizer"] = pathlib.Path(config.data.tokenizer).name
    for name in ("init_from", "teacher_from"):
        values[name] = pathlib.Path(values[name]).name
    return values


def _count(arrays: Arrays) -> int:
    return sum(math.prod(array.shape) for array in arrays.values())
