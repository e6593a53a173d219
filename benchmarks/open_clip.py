"""Checks that open_clip's own loader reads the tars of an export.

    python -m pipeline.run export --format webdataset --config FILE.py --output RUN ...
    python -m pip install open_clip_torch webdataset pandas
    python -m benchmarks.open_clip --data RUN/webdataset

Reads every sample twice: with open_clip's `get_wds_dataset`, as its training does with
`--dataset-type webdataset`, where each text must be the tokens of an alt text; and with
webdataset, where each granularity must occur as often as the JSON says. Needs no other
package of this project. Prints one JSON object.
"""

import argparse
import collections
import json
import pathlib
import time
from types import SimpleNamespace
from typing import Any

BATCH_SIZE = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    folder = parser.parse_args().data
    manifest = json.loads((folder / "manifest.json").read_text())
    tars = [str(folder / shard["name"]) for shard in manifest["shards"]]
    start = time.monotonic()
    found = {
        "n_samples": manifest["n_samples"],
        "n_tars": len(tars),
        "open_clip": read_by_open_clip(tars, manifest["n_samples"]),
        "webdataset": read_by_webdataset(tars),
    }
    print(json.dumps(found | {"s": round(time.monotonic() - start, 1)}, indent=1))


def read_by_open_clip(tars: list[str], n_samples: int) -> dict[str, int]:
    """Counts samples of one pass, and those with the tokens of an alt text."""
    import open_clip
    from open_clip_train.data import get_wds_dataset

    tokenize = open_clip.tokenize
    known = {tuple(tokenize(text)[0].tolist()) for text in _alt_texts(tars)}
    arguments = SimpleNamespace(
        train_data="::".join(tars),
        val_data="::".join(tars),
        train_num_samples=n_samples,
        val_num_samples=n_samples,
        dataset_resampled=False,
        train_data_upsampling_factors=None,
        seed=0,
        batch_size=BATCH_SIZE,
        workers=0,
        world_size=1,
    )
    prepare = open_clip.image_transform(224, is_train=False)
    data = get_wds_dataset(arguments, prepare, is_train=False, tokenizer=tokenize)
    n_read = n_known = 0
    for images, texts in data.dataloader:
        assert images.shape[1:] == (3, 224, 224)
        n_read += len(images)
        n_known += sum(tuple(text.tolist()) in known for text in texts)
    return {"n_read": n_read, "n_with_an_alt_text": n_known}


def read_by_webdataset(tars: list[str]) -> dict[str, dict[str, int]]:
    """Counts, by granularity, samples that have it as a field and in their JSON."""
    fields: dict[str, int] = collections.Counter()
    described: dict[str, int] = collections.Counter()
    for sample in _samples(tars):
        captions = json.loads(sample["json"])["captions"]
        described.update(captions.keys())
        fields.update(
            name
            for name, texts in captions.items()
            if sample.get(f"{name}.txt", b"").decode() == texts[0]
        )
    return {
        name: {"n_fields": fields[name], "n_in_json": n}
        for name, n in sorted(described.items())
    }


def _alt_texts(tars: list[str]) -> list[str]:
    return [sample["txt"].decode() for sample in _samples(tars)]


def _samples(tars: list[str]) -> Any:
    import webdataset

    return webdataset.WebDataset(tars, shardshuffle=False)


if __name__ == "__main__":
    main()
