import dataclasses
import json

import numpy as np
import pytest
import tiny_export

from trainer import input as trainer_input
from trainer.config import RunConfig
from trainer.shards import RecordError, Shards
from trainer.tokenizer import Tokenizer

ONE_THREAD = RunConfig(n_threads=1)


def make_view(folder, config, **changes):
    data = dataclasses.replace(config.data, **changes)
    tokenizer = Tokenizer(data.tokenizer, config.model.text.max_tokens)
    return trainer_input.ViewSample(Shards(folder), tokenizer, data, config.rng_seed)


@pytest.fixture(scope="module")
def view(export, tiny):
    return make_view(export, tiny)


def take(stream, n):
    return [{name: np.array(x) for name, x in next(stream).items()} for _ in range(n)]


def stream_of(view, n, run=ONE_THREAD):
    stream = trainer_input.batches(view, run)
    taken = take(stream, n)
    stream.close()
    return taken


def assert_equal(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def ids(batches):
    return [row.tobytes() for batch in batches for row in batch["sample_id"]]


def test_a_batch_holds_views_and_token_ids(view):
    (batch,) = stream_of(view, 1)
    shapes = {name: (x.dtype.name, x.shape) for name, x in batch.items()}
    assert shapes == {
        "image": ("uint8", (8, 28, 28, 3)),
        "alt_text": ("int32", (8, 12)),
        "synthetic_caption": ("int32", (8, 12)),
        "sample_id": ("uint8", (8, 16)),
    }


def test_an_epoch_shows_every_sample_once_and_the_next_in_another_order(view):
    seen = ids(stream_of(view, 6))
    assert len(set(seen[:24])) == len(set(seen[24:])) == 24
    assert seen[:24] != seen[24:]


def test_a_sample_shows_other_views_and_captions_in_other_epochs(view):
    rows = [
        (row_id.tobytes(), image.tobytes())
        for batch in stream_of(view, 6)
        for row_id, image in zip(batch["sample_id"], batch["image"], strict=True)
    ]
    assert len(set(rows)) == 48


def test_rows_of_a_batch_belong_together(view):
    (batch,) = stream_of(view, 1)
    by_id = {s.sample_id: s for s in (view.shards[i] for i in range(24))}
    for row, alt_text in zip(batch["sample_id"], batch["alt_text"], strict=True):
        sample = by_id[row.tobytes()]
        assert alt_text.tolist() == view.tokenizer([sample.alt_text])[0].tolist()


def test_another_seed_gives_another_stream(view):
    other = dataclasses.replace(view, rng_seed=1)
    assert ids(stream_of(view, 2)) != ids(stream_of(other, 2))


def test_a_view_depends_on_seed_epoch_and_sample_alone(view):
    """Not on the batch size, nor on where in the epoch the sample comes."""
    one, other = view(3, 5), view(20, 5)
    np.testing.assert_array_equal(one["image"], other["image"])
    assert view(24, 5)["image"].tobytes() != one["image"].tobytes()


def test_the_stream_is_the_same_for_any_number_of_threads_and_workers(view):
    expected = stream_of(view, 4)
    assert_equal(stream_of(view, 4, RunConfig(n_threads=3)), expected)
    assert_equal(stream_of(view, 4, RunConfig(n_workers=2, n_threads=1)), expected)


def test_a_restored_stream_goes_on_bit_for_bit(view):
    stream = trainer_input.batches(view, ONE_THREAD)
    take(stream, 2)
    state = json.loads(json.dumps(stream.get_state()))
    expected = take(stream, 3)
    restored = trainer_input.batches(view, RunConfig(n_threads=2))
    restored.set_state(state)
    assert_equal(take(restored, 3), expected)


@pytest.mark.parametrize("image", [b"", b"\xff\xd8\xffnothing"])
def test_an_image_that_does_not_decode_names_its_record(tmp_path, tiny, image):
    samples = [tiny_export.sample(number) for number in range(8)]
    samples[3] = tiny_export.sample(3, image=image)
    view = make_view(tiny_export.write(tmp_path, samples, 1), tiny)
    with pytest.raises(RecordError, match=r"record 3 of .*train-00000-of-00001"):
        stream_of(view, 1)


def test_a_granularity_that_the_shards_lack_is_an_error(export, tiny):
    data = dataclasses.replace(tiny.data, granularity_weights={"shrt": 1.0})
    with pytest.raises(ValueError, match=r"shrt, expected .* short, detailed"):
        trainer_input.check_request(Shards(export), data)


def test_a_batch_larger_than_the_data_is_an_error(export, tiny):
    data = dataclasses.replace(tiny.data, batch_size=25)
    with pytest.raises(ValueError, match="batch_size=25: expected at most 24"):
        trainer_input.check_request(Shards(export), data)
