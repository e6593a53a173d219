"""Writes a trained model for other programs: Hugging Face, Scenic, PyTorch, ONNX.

    python -m trainer.export --checkpoint DIR --output DIR \\
        --format hf|scenic|pytorch|onnx|stablehlo

The folder is complete or does not exist: weights, sizes, tokenizer and a model card.
The model is the student of a workdir, or with `--weights teacher` the average of its
image encoder; an export can be converted to another format.
"""

import pathlib
from collections.abc import Sequence

from recipes import command_line
from recipes.validation import require
from trainer.command_line import export_parser

command_line.begin(__name__, export_parser)

from pipeline.storage import atomic_folder
from trainer.evaluation_config import Weights
from trainer.exchange import formats, model_card
from trainer.exchange.exported_weights import ExportedWeights
from trainer.exchange.formats import Format
from trainer.pretrained.trained_model import (
    ImportedModel,
    TrainedModel,
    find_trained_model,
)


def export(
    found: TrainedModel,
    model: ExportedWeights,
    form: Format,
    output: pathlib.Path,
    *,
    gelu: str,
) -> None:
    """Writes a temporary folder, which becomes `output` when it is complete."""
    with atomic_folder.create(output) as folder:
        formats.write(model, form, folder, gelu=gelu)
        tokenizer = pathlib.Path(found.config.data.tokenizer)
        max_tokens = model.model.text.max_tokens
        formats.write_tokenizer(tokenizer, form, folder, max_tokens)
        training = _describe_training(found)
        (folder / "README.md").write_text(model_card.render_card(model, form, training))


def _describe_training(found: TrainedModel) -> str:
    if isinstance(found, ImportedModel):
        return model_card.describe_import(found.folder)
    return model_card.describe_run(
        found.config, found.folder, found.step, found.weights
    )


def _find_tokenizer(found: TrainedModel) -> pathlib.Path:
    path = pathlib.Path(found.config.data.tokenizer)
    if not path.is_file():
        raise ValueError(f"{path}: no such file, expected the model's tokenizer")
    return path


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; see the module."""
    flags = export_parser().parse_args(arguments)
    with command_line.exits(command_line.WRONG_USAGE, ValueError, OSError):
        atomic_folder.check(flags.output)
        found = find_trained_model(flags.checkpoint, flags.step)
        found = found.with_weights(Weights(flags.weights))
        tokenizer = _find_tokenizer(found)
        model = found.exported_weights()
        if flags.image_size_px is not None:
            model = formats.with_image_size(model, flags.image_size_px)
        form = Format(flags.format)
        require(
            form is Format.HF or flags.gelu == "tanh",
            f"--gelu {flags.gelu}",
            f"tanh with --format {form}, which does not say it",
        )
        formats.check(model, tokenizer, form)
    with command_line.exits(command_line.FAILED, OSError):
        export(found, model, form, flags.output, gelu=flags.gelu)
    print(f"{flags.output}: {form}, step {found.step}")


if __name__ == "__main__":
    main()
