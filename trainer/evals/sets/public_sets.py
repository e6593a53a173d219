"""The evaluation sets of both papers: what they are, and how many images to expect.

`--data NAME=PATH` says that the data at a path are one of them: the number of images is
then compared with the expected one, and names of classes that are given here need no
file. Nothing is downloaded; `source` says where the data come from.

`counted_by` names the reference of a count; it is None where the papers' own sources
give none. The eight domains of UnED are sets of their own, and so are the four readings
of zero-shot masks: that makes the twenty of TIPSv2.
"""

import dataclasses
from collections.abc import Mapping

from trainer.evals.sets.class_names import ADE20K, VOC


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """One public evaluation set."""

    title: str
    tasks: tuple[str, ...]
    split: str  # that is scored
    source: str
    n_images: int | None = None  # of that split
    n_index: int | None = None  # searched by fine-grained queries; 0: by each other
    counted_by: str = ""
    classes: tuple[str, ...] = ()  # of masks; () where a file has to say
    note: str = ""


_UNED = "github.com/nikosips/Universal-Image-Embeddings"
_UNED_COUNTS = f"{_UNED}, dataset_infos.py"
_TIPS_NOTEBOOK = "google-deepmind/tips, TIPS_zeroshot_segmentation.ipynb"
_RETRIEVAL = ("retrieval",)
_GEOMETRY_NOTE = (
    "Convert to depth in meters (.npy) or millimeters (16-bit PNG), normals to .npy"
)


def _uned(title: str, n_images: int, n_index: int = 0) -> Recipe:
    return Recipe(
        title=f"UnED: {title}",
        tasks=("fine_grained_retrieval",),
        split="test",
        source=_UNED,
        n_images=n_images,
        n_index=n_index,
        counted_by=_UNED_COUNTS,
    )


RECIPES: Mapping[str, Recipe] = {
    "imagenet": Recipe(
        title="ImageNet-1K",
        tasks=(
            "knn_classification",
            "linear_classification",
            "zero_shot_classification",
        ),
        split="validation",
        source="image-net.org, ILSVRC 2012; tfds:imagenet2012",
        n_images=50_000,
        counted_by="tensorflow/models, ILSVRC 2012 splits (training: 1,281,167)",
    ),
    "flickr30k": Recipe(
        title="Flickr30K, Karpathy's test images with 5 captions each",
        tasks=_RETRIEVAL,
        split="test",
        source="shannon.cs.illinois.edu/DenotationGraph",
        n_images=1_000,
        counted_by="TIPS, section 4",
    ),
    "coco": Recipe(
        title="COCO, Karpathy's test images",
        tasks=_RETRIEVAL,
        split="test",
        source="cocodataset.org",
        n_images=5_000,
        counted_by="TIPS, section 4",
    ),
    "docci": Recipe(
        title="DOCCI",
        tasks=_RETRIEVAL,
        split="test",
        source="google.github.io/docci",
        note="Descriptions are longer than the 64 tokens that are read",
    ),
    "uned_cars": _uned("Cars196", 8_131),
    "uned_sop": _uned("Stanford Online Products", 60_502),
    "uned_inshop": _uned("In-Shop", 14_218, 12_612),
    "uned_inat": _uned("iNaturalist", 136_093),
    "uned_met": _uned("Met", 1_003, 397_121),
    "uned_gldv2": _uned("Google Landmarks v2", 1_129, 761_757),
    "uned_food2k": _uned("Food2k", 9_979),
    "uned_rp2k": _uned("Rp2k", 10_931),
    "voc": Recipe(
        title="PASCAL VOC 2012",
        tasks=("linear_segmentation", "dpt_segmentation"),
        split="val",
        source="host.robots.ox.ac.uk/pascal/VOC/voc2012",
        classes=("background", *VOC),
    ),
    "ade20k": Recipe(
        title="ADE20K, scene parsing",
        tasks=("linear_segmentation", "dpt_segmentation"),
        split="validation",
        source="data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
        n_images=2_000,
        counted_by=_TIPS_NOTEBOOK,
        classes=ADE20K,
    ),
    "nyuv2": Recipe(
        title="NYUv2",
        tasks=("linear_depth", "normals"),
        split="test",
        source="cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html",
        note=_GEOMETRY_NOTE,
    ),
    "navi": Recipe(
        title="NAVI",
        tasks=("dpt_depth", "normals"),
        split="test",
        source="navidataset.github.io",
        note=_GEOMETRY_NOTE,
    ),
    "ade150": Recipe(
        title="ADE20K by names, 150 classes",
        tasks=("zero_shot_segmentation",),
        split="validation",
        source="data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
        n_images=2_000,
        counted_by=_TIPS_NOTEBOOK,
        classes=ADE20K,
    ),
    "context59": Recipe(
        title="PASCAL Context by names, 59 classes; the rest is ignored",
        tasks=("zero_shot_segmentation",),
        split="val",
        source="cs.stanford.edu/~roozbeh/pascal-context",
    ),
    "context60": Recipe(
        title="PASCAL Context by names, 59 classes and the background",
        tasks=("zero_shot_segmentation",),
        split="val",
        source="cs.stanford.edu/~roozbeh/pascal-context",
        note="How the papers treat the background is not known; here it is a name",
    ),
    "voc21": Recipe(
        title="PASCAL VOC 2012 by names, 20 classes and the background",
        tasks=("zero_shot_segmentation",),
        split="val",
        source="host.robots.ox.ac.uk/pascal/VOC/voc2012",
        classes=("background", *VOC),
        note="How the papers treat the background is not known; here it is a name",
    ),
}


def split_name(data: str) -> tuple[str, str]:
    """Returns (name, place) of `[NAME=]PLACE`; the name is "" if there is none.

    Raises ValueError on a name that is no recipe.
    """
    name, is_named, place = data.partition("=")
    if not is_named or not name.isidentifier():
        return "", data
    if name not in RECIPES:
        raise ValueError(
            f"{name}: no such data set, expected one of {', '.join(RECIPES)}"
        )
    return name, place


def check_task(name: str, task: str) -> None:
    """Raises ValueError if the papers do not run this task on the data set."""
    if name and task not in RECIPES[name].tasks:
        tasks = ", ".join(RECIPES[name].tasks)
        raise ValueError(f"{name}: expected a task of {tasks}, not {task}")


def compare_size(name: str, n_images: int) -> dict[str, object]:
    """Returns, for the results, whether it is the whole set; None if unknown."""
    recipe = RECIPES[name]
    expected = recipe.n_images
    is_whole = None if expected is None else n_images == expected
    index = {"n_index_expected": recipe.n_index} if recipe.n_index else {}
    return {"name": name, "n_images_expected": expected, "is_whole": is_whole, **index}
