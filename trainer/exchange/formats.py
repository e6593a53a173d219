"""The forms that models are exchanged in, and how to recognize those that are read."""

import dataclasses
import enum
import pathlib
import shutil

from recipes.validation import require
from trainer.data.text_tokenizer import Tokenizer, check_size
from trainer.exchange import (
    hugging_face,
    npz,
    onnx_graph,
    stablehlo,
    tokenizer_json,
)
from trainer.exchange.exported_weights import ExportedWeights

TOKENIZER = "tokenizer.model"


class Format(enum.StrEnum):
    """The form of an export."""

    HF = "hf"  # a folder of Hugging Face's `tipsv2`
    SCENIC = "scenic"  # the official pair of files for JAX
    PYTORCH = "pytorch"  # the official pair of files for PyTorch
    ONNX = "onnx"  # the image encoder as a graph; not read
    STABLEHLO = "stablehlo"  # the image encoder as a program; not read


# Whole models; the other forms hold the image encoder alone.
READ = (Format.HF, Format.SCENIC, Format.PYTORCH)


def is_export(path: pathlib.Path) -> bool:
    """Whether `read` reads it: a folder, or the file of a vision tower."""
    return hugging_face.is_folder(path) or npz.is_pair(path)


def check_is_read(folder: pathlib.Path) -> None:
    """Raises ValueError for a folder of a form that is written alone."""
    for file in (onnx_graph.FILE, stablehlo.FILE):
        if (folder / file).exists():
            raise ValueError(
                f"{folder}: holds {file}, expected a workdir, or an export as"
                f" {', '.join(READ)}"
            )


def read(path: pathlib.Path) -> ExportedWeights:
    """Reads an export. Raises ValueError if something is wrong with it."""
    is_folder = hugging_face.is_folder(path)
    return hugging_face.read(path) if is_folder else npz.read(path)


def write(
    model: ExportedWeights, form: Format, folder: pathlib.Path, *, gelu: str = "tanh"
) -> None:
    """Writes weights and sizes into an existing folder; see `check`.

    PyTorch's forms hold the learned positions for the size of the model's images, or
    all of them if there are more; Scenic's holds them as they were learned.
    """
    if form not in READ:
        writer = onnx_graph if form is Format.ONNX else stablehlo
        writer.write(model.with_grid(_image_side(model)), folder)
    elif form is Format.SCENIC:
        npz.write_scenic(model, folder)
    elif form is Format.PYTORCH:
        npz.write_pytorch(_square_grid(model), folder)
    else:
        hugging_face.write(_square_grid(model), folder, gelu=gelu)


def write_tokenizer(
    path: pathlib.Path, form: Format, folder: pathlib.Path, max_tokens: int
) -> None:
    """Copies a sentencepiece model; Hugging Face also gets `tokenizer.json`.

    An image encoder alone gets nothing.
    """
    if form not in READ:
        return
    shutil.copyfile(path, folder / TOKENIZER)
    if form is Format.HF:
        hugging_face.write_tokenizer(path, folder, max_tokens)


def check(model: ExportedWeights, tokenizer: pathlib.Path, form: Format) -> None:
    """Raises ValueError if the format cannot hold the model or its tokenizer."""
    rows, columns = model.model.vision.position_grid
    if form is Format.ONNX:
        onnx_graph.import_onnx()
    require(
        form not in (Format.HF, Format.PYTORCH) or rows == columns,
        f"position_grid=({rows}, {columns})",
        f"as many rows as columns for the format {form}",
    )
    n_registers = model.model.vision.n_registers
    require(
        not n_registers or form not in READ,
        f"n_registers={n_registers}",
        f"0 for the format {form}, whose readers know none; onnx and stablehlo do",
    )
    check_size(Tokenizer(tokenizer, model.model.text.max_tokens), model.model.text)
    if form is Format.HF:
        tokenizer_json.convert_tokenizer(tokenizer)


def with_image_size(model: ExportedWeights, size_px: int) -> ExportedWeights:
    """Returns the same model for images of another size."""
    patch = model.model.vision.patch_size_px
    is_whole = size_px > 0 and size_px % patch == 0
    require(is_whole, f"image size {size_px}", f"a multiple of {patch} px, a patch")
    return dataclasses.replace(model, size_px=size_px)


def _square_grid(model: ExportedWeights) -> ExportedWeights:
    rows, _ = model.model.vision.position_grid
    side = max(rows, _image_side(model))
    return model if side == rows else model.with_grid(side)


def _image_side(model: ExportedWeights) -> int:
    """Patches along a side of the images that it is for."""
    return model.size_px // model.model.vision.patch_size_px
