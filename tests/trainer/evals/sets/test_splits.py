"""Which images train and which test: by names, in every form, or refused."""

import pytest

from tests.support.eval_sets import JPEG, dealt, write_table, write_tar, write_tree
from trainer.evals.sets.layouts import ScoredSplit
from trainer.evals.sets.readers import find_source
from trainer.evals.sets.samples import SampleError
from trainer.split_names import find_sign


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00002-3f2b1d7c9a", "train"),
        ("cifar10-train-000", "train"),
        ("Train", "train"),
        ("train2017", "train"),
        ("trainval", "train"),
        ("train_val2014", "train"),
        ("trainset", "train"),
        ("TrainImages", "train"),
        ("TRAINING", "train"),
        ("valid", "validation"),
        ("val2017", "validation"),
        ("dev", "validation"),
        ("ILSVRC2012_img_val", "validation"),
        ("imagenet-val-000000", "validation"),
        ("validation.clean", "validation"),
        ("split=test", "test"),
        ("test_images", "test"),
        ("testing", "test"),
        ("eval", "test"),
        ("query", "test"),
        ("gallery", "index"),
        ("art_gallery", None),
        ("train_vs_test", None),
        ("constraint", None),
        ("contest", None),
        ("evaluate", None),
        ("data-00000-of-00001", None),
    ],
)
def test_names_of_splits_are_understood(name, split):
    sign = find_sign(name)
    assert (sign and sign.split) == split


FOLDERS = [
    ("train", "test"),
    ("train", "valid"),
    ("Train", "Test"),
    ("training", "testing"),
    ("train2017", "val2017"),
    ("train_images", "test_images"),
    ("imagenet-train", "imagenet-val"),
    ("split=train", "split=test"),
    ("trainset", "devset"[:3]),
    ("TRAIN", "EVAL"),
]


@pytest.mark.parametrize(("train", "test"), FOLDERS)
def test_folders_of_classes_are_of_the_split_around_them(tmp_path, train, test):
    files = [f"{train}/{name}/{i}.jpg" for name in ("cat", "train") for i in range(3)]
    files += [f"{test}/cat/9.jpg", f"{test}/train/9.jpg"]
    write_tree(tmp_path / "set", dict.fromkeys(files, JPEG))
    found = dealt(tmp_path / "set")
    assert [len(part) for part in found] == [6, 2]
    by_glob = dealt(tmp_path / "set" / "*" / "*" / "*.jpg")
    assert by_glob == [[f"{key}.jpg" for key in part] for part in found]
    labels = {one.label for one in find_source(str(tmp_path / "set")).samples()}
    assert labels == {"cat", "train"}


@pytest.mark.parametrize(("train", "test"), FOLDERS)
def test_tars_and_tables_are_of_the_split_in_their_names(tmp_path, train, test):
    for name, n in ((train, 3), (test, 2)):
        write_tar(
            tmp_path / "tars" / f"{name}-000000.tar",
            {f"{name}{i}.jpg": JPEG for i in range(n)},
        )
        write_table(
            tmp_path / "tables" / "data" / f"{name}-00000-of-00001-1f3a.parquet",
            {"image": [JPEG] * n},
        )
        write_table(
            tmp_path / "hive" / name / "0.parquet",
            {"image": [JPEG] * n},
        )
    for place in ("tars", "tables", "hive", "tars/*.tar", "hive/*/*.parquet"):
        assert [len(part) for part in dealt(tmp_path / place)] == [3, 2]


@pytest.mark.parametrize(
    "names",
    [
        ("train/cat/0", "val/cat/1"),
        ("COCO_train2014_01", "COCO_val2014_02"),
        ("ILSVRC2012_train_1", "ILSVRC2012_val_1"),
        ("data/train_00001", "data/test_00001"),
    ],
)
def test_members_of_a_tar_and_names_of_photos_tell_splits(tmp_path, names):
    files = {f"{name}.jpg": JPEG for name in names}
    write_tar(tmp_path / "set" / "all.tar", files)
    write_tree(tmp_path / "folder", files)
    for place in ("set", "folder"):
        assert dealt(tmp_path / place) == [[names[0]], [names[1]]]


@pytest.mark.parametrize("value", ["Train", "training", "train2017", "restval"])
def test_fields_of_json_and_rows_tell_splits(tmp_path, value):
    columns = {"image": [JPEG] * 2, "split": [value, "dev"], "key": ["a", "b"]}
    write_table(tmp_path / "tables" / "0.parquet", columns)
    files = {"a.jpg": JPEG, "a.json": b'{"split": "%s"}' % value.encode()}
    files |= {"b.jpg": JPEG, "b.json": b'{"split": "VALID"}'}
    write_tar(tmp_path / "tars" / "0.tar", files)
    for place in ("tables", "tars"):
        assert dealt(tmp_path / place) == [["a"], ["b"]]


def test_a_class_is_called_like_a_split(tmp_path):
    files = [f"{name}/{name}_{i}.jpg" for name in ("bus", "train") for i in range(20)]
    write_tree(tmp_path / "set", dict.fromkeys(files, JPEG))
    source = find_source(str(tmp_path / "set"))
    assert {one.label for one in source.not_of_training("label")} == {"bus", "train"}
    assert source.account.summary()["warnings"] == [
        "folder train: taken for a class, as the folders beside it are"
    ]
    train, test = dealt(tmp_path / "set")
    assert len(train) + len(test) == 40
    for other in ("train station", "test tube", "art_gallery", "validation stamp"):
        names = [f"{name}/{i}.jpg" for name in ("bus", other) for i in range(2)]
        write_tree(tmp_path / other, dict.fromkeys(names, JPEG))
        assert sum(map(len, dealt(tmp_path / other))) == 4


@pytest.mark.parametrize(
    "files",
    [
        ("train/cat/0", "val/cat/1", "more/cat/2"),
        ("train/cat/0", "more/cat/1"),
        ("cat/0", "dog/1", "test/2"),  # no thing is called so
        ("flowers/cat/0", "flowers_test/cat/1"),
        ("cat/IMG_1", "cat/test_2"),
        ("cat/COCO_val2014_1", "cat/COCO_train2014_2", "cat/3"),
    ],
)
def test_a_set_of_which_a_part_has_no_split_is_refused(tmp_path, files):
    write_tree(tmp_path / "set", {f"{name}.jpg": JPEG for name in files})
    with pytest.raises(SampleError, match=r"of a split \(.*\), others of none"):
        dealt(tmp_path / "set")


@pytest.mark.parametrize(
    "write",
    [
        lambda root: [
            write_tar(root / name, {"0.jpg": JPEG})
            for name in ("val-0.tar", "more.tar")
        ],
        lambda root: write_table(
            root / "a.parquet", {"image": [JPEG] * 2, "split": ["train", None]}
        ),
        lambda root: write_tar(
            root / "a.tar",
            {"0.jpg": JPEG, "0.json": b'{"split": "train"}', "1.jpg": JPEG},
        ),
    ],
)
def test_files_and_rows_of_which_some_have_no_split_are_refused(tmp_path, write):
    write(tmp_path / "set")
    with pytest.raises(SampleError, match=r"of a split \(.*\), others of none"):
        dealt(tmp_path / "set")


@pytest.mark.parametrize("name", ["train_test.tar", "test/train-0.tar"])
def test_a_file_of_two_splits_is_refused(tmp_path, name):
    write_tar(tmp_path / "set" / name, {"0.jpg": JPEG})
    with pytest.raises(SampleError, match="expected one split, not several"):
        dealt(tmp_path / "set")


@pytest.mark.parametrize(
    "name",
    [
        "meta/test.txt",
        "train_test_split.txt",
        "annotations/captions_val2017.json",
        "setid.mat",
        "val.csv",
        "README.md",
    ],
)
def test_a_list_of_a_split_that_is_not_read_is_refused(tmp_path, name):
    write_tree(tmp_path / "set", {"cat/0.jpg": JPEG, "dog/0.jpg": JPEG})
    write_tree(tmp_path / "set", {name: b"configs:\n  - split: test\n"})
    with pytest.raises(SampleError, match="speaks of a split, and is not understood"):
        dealt(tmp_path / "set")
    assert len(list(find_source(str(tmp_path / "set")).not_of_training())) == 2


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("minitrain", "minival"),
        ("Trainingsdaten", "Testdaten"),
        ("subtrain2014", "subtest2014"),
        ("traindir", "validdir"),
    ],
)
def test_longer_words_that_speak_of_splits_are_refused(tmp_path, train, test):
    parts = ((train, 3), (test, 2))
    files = [f"{part}/cat/{i}.jpg" for part, n in parts for i in range(n)]
    write_tree(tmp_path / "folders", dict.fromkeys(files, JPEG))
    for part, n in parts:
        members = {f"{i}.jpg": JPEG for i in range(n)}
        write_tar(tmp_path / "tars" / f"{part}-000.tar", members)
        write_table(tmp_path / "tables" / part / "0.parquet", {"image": [JPEG] * n})
    for form in ("folders", "tars", "tables"):
        with pytest.raises(SampleError, match="speaks of a split, and is not"):
            dealt(tmp_path / form)
        place = str(tmp_path / form)
        assert len(list(find_source(place).not_of_training())) == 5


def test_classes_that_sound_like_splits_are_dealt_out(tmp_path):
    names = ("bullet train", "valley", "testudo", "cat")
    files = [f"{name}/{i}.jpg" for name in names for i in range(9)]
    write_tree(tmp_path / "set", dict.fromkeys(files, JPEG))
    assert sum(map(len, dealt(tmp_path / "set"))) == 36


@pytest.mark.parametrize("name", ["val", "test", "val2017", "test_images"])
def test_test_images_alone_train_nothing(tmp_path, name):
    files = [f"{name}/{kind}/{i}.jpg" for kind in ("cat", "dog") for i in range(5)]
    write_tree(tmp_path, dict.fromkeys(files, JPEG))
    places = (tmp_path / name, tmp_path / name / "*" / "*.jpg")
    for place in places:
        train, test = dealt(place)
        assert (len(train), len(test)) == (0, 10)


def test_of_two_test_splits_one_is_scored(tmp_path):
    parts = ("train", "val", "test")
    write_tree(tmp_path / "set", {f"{part}/cat/{part}.jpg": JPEG for part in parts})
    place = str(tmp_path / "set")
    assert dealt(place) == [["train/cat/train"], ["test/cat/test"]]
    for wanted in (ScoredSplit("validation"), ScoredSplit("", "validation")):
        assert dealt(place, wanted=wanted)[1] == ["val/cat/val"]
    source = find_source(place)
    assert len(list(source.not_of_training())) == 1
    left = {"split train": 1, "split validation": 1}
    assert source.account.summary()["left_out"] == left
    with pytest.raises(SampleError, match="no split index, expected one of test, tr"):
        dealt(place, wanted=ScoredSplit("index"))


def test_only_a_set_without_any_sign_is_dealt_out_and_says_so(tmp_path):
    write_tree(tmp_path / "set", {f"cat/{i}.jpg": JPEG for i in range(50)})
    source = find_source(str(tmp_path / "set"))
    n_train, n_test = (len(list(source.of_split(part))) for part in ("train", "test"))
    assert source.account.split == "hashed"
    assert list(source.account.lines()) == [
        f"no sign of a split: {n_test} of 50 images, by a hash of their keys, are the"
        " test images"
    ]
    assert source.account.summary()["splits"] == {"test": n_test, "train": n_train}


def test_brackets_in_a_place_are_no_pattern(tmp_path):
    write_tar(tmp_path / "a[1]" / "b{2}*.tar", {"0.jpg": JPEG})
    write_tar(tmp_path / "a1" / "other.tar", {"1.jpg": JPEG})
    for place in (tmp_path / "a[1]", tmp_path / "a[1]" / "b{2}*.tar"):
        found = find_source(str(place)).samples()
        assert [one.key for one in found] == ["0"]
