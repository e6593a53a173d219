"""Small evaluation sets in the forms that are read."""

import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.support import tiny_export
from trainer.evals.sets.readers import find_source
from trainer.split_names import TEST, TRAIN

JPEG = tiny_export.encoded(tiny_export.picture(0))  # 40 x 32
PNG = tiny_export.encoded(tiny_export.picture(1), "png")


def encoded(image_format):
    file = io.BytesIO()
    tiny_export.picture(0).save(file, image_format)
    return file.getvalue()


def png(array, mode=None):
    file = io.BytesIO()
    Image.fromarray(array, mode).save(file, "png")
    return file.getvalue()


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def write_tar(path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def write_tree(root, files):
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def write_table(path, columns, features=None):
    """`features` is what Hugging Face's metadata say of the columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    if features:
        told = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": told})
    pq.write_table(table, path)


def read(place):
    return list(find_source(str(place)).samples())


def dealt(place, **options):
    """Keys of the training images, and of the test images."""
    source = find_source(str(place), **options)
    return [
        sorted(one.key for one in source.of_split(split)) for split in (TRAIN, TEST)
    ]
