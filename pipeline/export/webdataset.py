"""WebDataset tars: samples as files that share the part of their name before a dot.

A sample is `<sample_id>.jpg` with the image, whichever format it has, as img2dataset
names them; `<sample_id>.txt` with the alt text, one `<sample_id>.<granularity>.txt` for
each granularity with its first caption, and `<sample_id>.json` with what is left. All
samples have the same members: loaders take the columns of a whole set from its first
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
    """Writes a tar of this machine; returns its index, `INDEX_DTYPE` `[n]`.

    An entry is where the headers and files of a sample begin, and their length.
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
    """Names and contents of the files of one sample.

    That of a granularity is empty where the sample has no caption of it.
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
