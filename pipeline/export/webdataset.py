"""Writes WebDataset tars, in which the files of a sample share a key before the dot.

A sample has `<sample_id>.jpg` with the image (in any format, as img2dataset names
them), `<sample_id>.txt` with the alt text, `<sample_id>.<granularity>.txt` with the
first caption of each granularity, and `<sample_id>.json` with everything else. All
samples have the same files, as loaders take the columns of a set from its first
samples. Source: the format of github.com/webdataset.
"""

import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from pipeline.records import INDEX_DTYPE, Sample


def write_local(
    path: str, samples: Iterable[Sample], granularities: Sequence[str]
) -> np.ndarray:
    """Writes a local tar; returns its index, `INDEX_DTYPE` `[n]`.

    An entry is the offset of the first header of a sample, and the length of its files.
    """
    index = []
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            start = tar.offset
            for name, data in members(sample, granularities):
                header = tarfile.TarInfo(name)  # of 1970, owned by root
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))
            index.append((start, tar.offset - start))
    return np.array(index, INDEX_DTYPE)


def members(
    sample: Sample, granularities: Sequence[str]
) -> Iterator[tuple[str, bytes]]:
    """Yields the names and contents of the files of one sample.

    The file of a granularity is empty if the sample has no caption of it.

    >>> from pipeline.records import Sample
    >>> texts = {"short": ("A cat.",)}
    >>> sample = Sample(b"\\1", b"...", "jpeg", 2, 2, "cat", texts, 0.3, "web", ())
    >>> dict(members(sample, ["short", "long"]))["01.short.txt"]
    b'A cat.'
    """
    key = sample.sample_id.hex()
    yield f"{key}.jpg", sample.image
    yield f"{key}.txt", sample.alt_text.encode()
    for granularity in granularities:
        texts = sample.captions.get(granularity, ("",))
        yield f"{key}.{granularity}.txt", texts[0].encode()
    described = {
        "sample_id": key,
        "image_format": sample.image_format,
        "width": sample.width,
        "height": sample.height,
        "alt_text": sample.alt_text,
        "captions": sample.captions,
        "alignment_score": sample.alignment_score,
        "source": sample.source,
        "seeds": sample.seeds,
    }
    yield f"{key}.json", json.dumps(described, ensure_ascii=False).encode()
