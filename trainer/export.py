"""Writes a trained model for other programs: Hugging Face, Scenic, PyTorch.

    python -m trainer.export --checkpoint DIR --format hf|scenic|pytorch --output DIR

The folder is complete or does not exist: weights, sizes, tokenizer and a model card.
The model is the student of a workdir; an export can be converted to another format.
"""

import pathlib
from collections.abc import Sequence

from recipes import command_line

command_line.begin(__name__)

from pipeline.storage import atomic_folder
from trainer.command_line import add_checkpoint_flags
from trainer.exchange import formats, model_card
from trainer.exchange.exported_weights import ExportedWeights
from trainer.exchange.formats import Format
from trainer.exchange.hugging_face_config import GELUS
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
    return model_card.describe_run(found.config, found.folder, found.step)


def _find_tokenizer(found: TrainedModel) -> pathlib.Path:
    path = pathlib.Path(found.config.data.tokenizer)
    if not path.is_file():
        raise ValueError(f"{path}: no such file, expected the model's tokenizer")
    return path


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; see the module."""
    flags = _parser().parse_args(arguments)
    with command_line.exits(command_line.WRONG_USAGE, ValueError, OSError):
        atomic_folder.check(flags.output)
        found = find_trained_model(flags.checkpoint, flags.step)
        tokenizer = _find_tokenizer(found)
        model = found.exported_weights()
        if flags.image_size_px is not None:
            model = formats.with_image_size(model, flags.image_size_px)
        form = Format(flags.format)
        formats.check(model, tokenizer, form)
    with command_line.exits(command_line.FAILED, OSError):
        export(found, model, form, flags.output, gelu=flags.gelu)
    print(f"{flags.output}: {form}, step {found.step}")


def _parser() -> command_line.Parser:
    parser = command_line.Parser(
        prog="python -m trainer.export",
        description="Writes a trained model for other programs.",
    )
    add_checkpoint_flags(parser)
    parser.add_argument("--format", required=True, choices=[*map(str, Format)])
    parser.add_argument(
        "--output",
        required=True,
        type=pathlib.Path,
        metavar="DIR",
        help="the folder that is made",
    )
    parser.add_argument(
        "--image-size-px",
        type=int,
        metavar="N",
        help="side of the images that the export is for (default: of training)",
    )
    parser.add_argument(
        "--gelu",
        choices=list(GELUS),
        default="tanh",
        help="with which GELU transformers computes: tanh, as in training, or exact, as"
        " released folders say (default: %(default)s; hf only)",
    )
    return parser


if __name__ == "__main__":
    main()
