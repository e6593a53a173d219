"""Draws what a checkpoint sees in photos, as PNGs and a page that shows them.

    python -m trainer.pictures --checkpoint WORKDIR --data [SET=]PATH --output FOLDER \\
        [--class-names NAME NAME ...] [--set a=value]...

For each photo: patch features as colors, zero-shot segmentation if names of classes are
known, its nearest neighbors, and the attention of both CLS tokens. Photos are drawn by
the hash of their keys, so the same command draws the same ones.
"""

import argparse
import heapq
import pathlib
from collections.abc import Iterator, Sequence

from recipes import command_line
from trainer.command_line import pictures_parser

command_line.begin(__name__, pictures_parser)

from pipeline.storage import atomic_folder
from recipes.safe_text import visible
from recipes.validation import require
from trainer import config_files
from trainer.data import hashed_random
from trainer.distributed.sharding import make_mesh
from trainer.evals.run import check_tasks, find_data, load_encoder
from trainer.evals.scores import segmentation
from trainer.evals.sets.readers import Source
from trainer.evals.sets.samples import Sample, SampleError
from trainer.evals.task_inputs import Evaluation
from trainer.pretrained.trained_model import find_trained_model
from trainer.visuals import page, views
from trainer.visuals.page import Figure, ImageSection
from trainer.visuals.sheets import to_png


def draw_samples(source: Source, n: int) -> list[Sample]:
    """Draws up to `n` samples, smallest hash first.

    Raises SampleError if there is none.
    """
    found = heapq.nsmallest(n, source.samples(), key=_draw)
    if not found:
        raise SampleError(f"{source.place}: no images")
    return found


def draw_pictures(
    run: Evaluation, searched: Sequence[Sample], n_images: int, names: Sequence[str]
) -> Iterator[ImageSection]:
    """Draws the first `n_images`; without `names` there are no classes to find."""
    samples = searched[:n_images]
    ways = [views.feature_views(run, samples)]
    if names:
        has_truth = tuple(names) == run.source.classes
        ways.append(views.class_views(run, samples, names, has_truth=has_truth))
    ways.append(views.neighbor_views(run, searched, len(samples)))
    ways.append(views.attention_views(run, samples))
    for number, (sample, *found) in enumerate(zip(samples, *ways, strict=True)):
        figures = [
            Figure(f"{number:02d}-{one.kind}.png", to_png(one.sheet), one.says)
            for one in found
        ]
        yield ImageSection(visible(sample.key), figures)


def write_pictures(
    output: pathlib.Path, title: str, images: Sequence[ImageSection]
) -> None:
    """Writes all pictures, and index.html with them."""
    with atomic_folder.create(output) as folder:
        for image in images:
            for figure in image.figures:
                (folder / figure.file).write_bytes(figure.png)
        (folder / "index.html").write_text(page.render_page(title, images), "utf-8")


def _draw(sample: Sample) -> tuple[float, str]:
    (draw,) = hashed_random.uniforms(1, "pictures", sample.key.encode(errors="replace"))
    return draw, sample.key


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; see the module."""
    flags = pictures_parser().parse_args(arguments)
    with command_line.exits(command_line.WRONG_USAGE, ValueError, OSError):
        _check(flags)
        found = find_trained_model(flags.checkpoint, flags.step)
        settings = config_files.changed(found.config.run.evaluation, flags.overrides)
        found = found.with_weights(settings.weights)
        check_tasks({}, settings, found.config.model.vision.patch_size_px)
        _, source = find_data(flags.data, settings)
        names = _find_class_names(
            flags.class_names, source, has_text="text" in found.module_names()
        )
        encoder, params = load_encoder(found, make_mesh(), has_text=bool(names))
    run = Evaluation(encoder, params, source, settings, is_shown=True)
    title = visible(f"{found.folder.name}, step {found.step}: {source.place}")
    with (
        command_line.exits(command_line.FAILED, ValueError, OSError),
        command_line.exits(command_line.WRONG_USAGE, SampleError),
    ):
        searched = draw_samples(source, max(flags.n_images, flags.n_searched))
        images = list(draw_pictures(run, searched, flags.n_images, names))
        write_pictures(flags.output, title, images)
    print(f"{flags.output / 'index.html'}: {len(images)} images")


def _check(flags: argparse.Namespace) -> None:
    atomic_folder.check(flags.output)
    for name in ("n_images", "n_searched"):
        number = getattr(flags, name)
        flag = "--" + name.replace("_", "-")
        require(number > 0, f"{flag} {number}", "1 or more")


def _find_class_names(
    given: Sequence[str] | None, source: Source, *, has_text: bool
) -> tuple[str, ...]:
    """The names of the command, or of the data if there is a text encoder."""
    if given:
        return segmentation.class_names(given)
    return (
        segmentation.class_names(source.classes) if source.classes and has_text else ()
    )


if __name__ == "__main__":
    main()
