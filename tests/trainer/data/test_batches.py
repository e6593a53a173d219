import dataclasses
import json
import pathlib

import numpy as np
import pytest

from pipeline.images import decoder as images
from pipeline.images.jpeg import Jpeg
from tests.support import served_store, tiny_export
from trainer.config import RunConfig
from trainer.data import crops
from trainer.data.batch_stream import stream_batches
from trainer.data.batches import SkippedRecords, ViewSample, check_request
from trainer.data.block_shuffle import BlockOrder
from trainer.data.mixture import Mixture
from trainer.data.shards import RecordError, Shards
from trainer.data.text_tokenizer import Tokenizer

ONE_THREAD = RunConfig(n_threads=1)


def make_mixture(*folders):
    return Mixture({f"set{i}": Shards(folder) for i, folder in enumerate(folders)})


def make_view(shards, config, **changes):
    return ViewSample(
        shards,
        Tokenizer(config.data.tokenizer, config.model.text.max_tokens),
        dataclasses.replace(config.data, **changes),
        config.rng_seed,
        config.self_supervision,
        config.model.vision.patch_size_px,
    )


@pytest.fixture(scope="module")
def view(export, tiny):
    return make_view(make_mixture(export), tiny)


def take(stream, n):
    return [{name: np.array(x) for name, x in next(stream).items()} for _ in range(n)]


def stream_of(view, n, run=ONE_THREAD, part=(0, 1)):
    index, count = part
    stream = stream_batches(view, run, shard_index=index, shard_count=count)
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
        "skipped": ("int32", (8, 7)),
        "local_crops": ("uint8", (8, 2, 14, 14, 3)),
        "mask": ("bool", (8, 2, 2)),
    }


@pytest.mark.parametrize(
    ("changes", "absent"),
    [({"distillation_weight": 0.0}, "local_crops"), ({"patch_weight": 0.0}, "mask")],
)
def test_what_no_loss_uses_is_not_made(view, changes, absent):
    ssl = dataclasses.replace(view.self_supervision, **changes)
    row = dataclasses.replace(view, self_supervision=ssl)(0, 0)
    assert view(0, 0).keys() - row.keys() == {absent}


def test_without_local_crops_there_are_none(view):
    config = dataclasses.replace(view.config, n_local_crops=0)
    row = dataclasses.replace(view, config=config)(0, 0)
    assert "local_crops" not in row
    assert row["image"].tobytes() == view(0, 0)["image"].tobytes()


def test_an_epoch_shows_every_sample_once_and_the_next_in_another_order(view):
    seen = ids(stream_of(view, 6))
    assert len(set(seen[:24])) == len(set(seen[24:])) == 24
    assert seen[:24] != seen[24:]


def test_a_sample_shows_other_views_and_captions_in_other_epochs(view):
    batches = stream_of(view, 6)
    for name in ("image", "local_crops"):
        rows = [
            (row_id.tobytes(), pixels.tobytes())
            for batch in batches
            for row_id, pixels in zip(batch["sample_id"], batch[name], strict=True)
        ]
        assert len(set(rows)) == 48


def test_local_crops_of_one_image_differ_and_lie_in_it(view):
    row = view(0, 3)
    first, second = row["local_crops"]
    assert not np.array_equal(first, second)
    image = images.decode(view.shards[3].image).rgb.astype(int)
    for crop in (first, second):
        assert image.min() - 30 <= crop.min() <= crop.max() <= image.max() + 30


def test_every_row_hides_the_configured_share_each_time_elsewhere(view):
    batches = stream_of(view, 6)
    masks = np.concatenate([batch["mask"] for batch in batches])
    assert (masks.sum((1, 2)) == 3).all()  # 0.75 of 4 patches
    assert len({mask.tobytes() for mask in masks}) == 4


def test_a_small_crop_of_a_large_image_is_as_if_decoded_in_full(
    tmp_path, tiny, monkeypatch
):
    """But for a part of a pixel, by which rounded boxes may move."""
    image = tiny_export.encoded(tiny_export.picture(0, size=(640, 480)))
    folder = tiny_export.write(tmp_path, [tiny_export.sample(0, image=image)], 1)
    view = make_view(make_mixture(folder), tiny)
    factors, decode = [], Jpeg.decode_fast

    def spy(opened, reduction):
        pixels, factor = decode(opened, reduction)
        if opened.data == image:  # loaders of other tests may still be at work
            factors.append(factor)
        return pixels, factor

    monkeypatch.setattr(Jpeg, "decode_fast", spy)
    fast = view(0, 0)
    monkeypatch.setattr(crops, "reduction", lambda _: 1)
    full = view(0, 0)
    assert factors == [8, 1]
    for name in ("image", "local_crops"):
        assert np.abs(fast[name].astype(int) - full[name]).mean() < 4


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
    stream = stream_batches(view, ONE_THREAD)
    take(stream, 2)
    state = json.loads(json.dumps(stream.get_state()))
    expected = take(stream, 3)
    restored = stream_batches(view, RunConfig(n_threads=2))
    restored.set_state(state)
    assert_equal(take(restored, 3), expected)


@pytest.mark.parametrize("n_parts", [1, 2, 4])
def test_processes_together_read_each_row_once(view, n_parts):
    whole = stream_of(view, 4)
    for part in range(n_parts):
        expected = [
            {name: x[part::n_parts] for name, x in batch.items()} for batch in whole
        ]
        assert_equal(stream_of(view, 4, part=(part, n_parts)), expected)


def test_a_stream_goes_on_with_another_number_of_processes(view):
    stream = stream_batches(view, ONE_THREAD, shard_index=1, shard_count=2)
    take(stream, 2)
    restored = stream_batches(view, ONE_THREAD)
    restored.set_state(json.loads(json.dumps(stream.get_state())))
    assert_equal(take(restored, 1), stream_of(view, 3)[2:])


def test_a_batch_that_processes_cannot_share_is_an_error(view):
    with pytest.raises(ValueError, match="batch_size=8: expected a multiple of 3"):
        stream_batches(view, ONE_THREAD, shard_count=3)


def write_with_broken(folder, broken, image=b"\xff\xd8\xffnothing", n=24):
    samples = [
        tiny_export.sample(i, **({"image": image} if i in broken else {}))
        for i in range(n)
    ]
    return tiny_export.write(folder, samples, 1)


@pytest.fixture
def damaged(tmp_path, tiny):
    """A view of 24 samples, of which 3 and 11 are broken."""
    return make_view(make_mixture(write_with_broken(tmp_path, {3, 11})), tiny)


@pytest.mark.parametrize("image", [b"", b"\xff\xd8\xffnothing"])
def test_an_image_that_does_not_decode_names_its_record(tmp_path, tiny, image):
    view = make_view(make_mixture(write_with_broken(tmp_path, {3}, image)), tiny)
    with pytest.raises(RecordError, match=r"record 3 of .*train-00000-of-00001"):
        view.view(0, 3)


def test_another_sample_takes_the_row_of_a_broken_one(view, damaged):
    ours = dataclasses.replace(view, shards=damaged.shards)
    readable = {damaged.shards[i].sample_id for i in range(24)} - {
        damaged.shards[i].sample_id for i in (3, 11)
    }
    seen = ids(stream_of(ours, 3))
    assert set(seen) <= readable
    assert len(set(seen)) == 22  # all that can be read are still shown


@pytest.mark.slow
def test_rows_that_replace_broken_ones_are_the_same_every_time(damaged):
    expected = stream_of(damaged, 6)
    assert_equal(stream_of(damaged, 6, RunConfig(n_workers=2, n_threads=1)), expected)
    replaced = [
        row["sample_id"].tobytes()
        for row in (damaged(position, 3) for position in range(0, 240, 24))
    ]
    assert len(set(replaced)) > 3  # not always the same one


def test_skipped_records_are_counted_always_and_named_once(damaged, caplog):
    skipped = SkippedRecords(damaged)
    counts = [skipped.count(batch) for batch in stream_of(damaged, 9)]
    epochs = [sum(counts[start : start + 3]) for start in (0, 3, 6)]
    assert all(n >= 2 for n in epochs)  # more where a stand-in is broken too
    names = [message.split(" of ")[0] for message in caplog.messages]
    assert sorted(names) == ["skipped record 11", "skipped record 3"]
    assert "train-00000-of-00001" in caplog.text


def test_whole_records_skip_nothing_and_warn_of_nothing(view, caplog):
    skipped = SkippedRecords(view)
    assert [skipped.count(batch) for batch in stream_of(view, 3)] == [0, 0, 0]
    assert not caplog.messages


def test_data_that_is_broken_throughout_is_an_error(tmp_path, tiny):
    folder = write_with_broken(tmp_path, set(range(8)), n=8)
    view = make_view(make_mixture(folder), tiny)
    with pytest.raises(RecordError, match=r"record \d of .*; 7 others, drawn before"):
        view(0, 0)


@pytest.fixture(scope="module")
def store(export):
    """The same export in an object store."""
    with served_store.serve("s3") as server:
        served_store.upload(server, pathlib.Path(export), "run")
        yield server


@pytest.fixture(scope="module")
def blocks(store, tiny):
    """The view in blocks of 5, which span shards, and windows of 2."""
    shards = make_mixture("s3://bucket/run")
    return make_view(shards, tiny, n_records_per_block=5, n_blocks_per_window=2)


def test_blocks_are_shown_as_the_order_says(blocks):
    order = BlockOrder(range(24), 5, 2, blocks.rng_seed)
    records = [order(position).record for position in range(48)]
    expected = [blocks.shards[record].sample_id for record in records]
    assert ids(stream_of(blocks, 6)) == expected
    assert len({*expected[:24]}) == len({*expected[24:]}) == 24


def test_a_store_and_a_local_folder_show_the_same(blocks, view):
    local = dataclasses.replace(blocks, shards=view.shards)
    assert_equal(stream_of(local, 4), stream_of(blocks, 4))


def test_a_stream_in_blocks_is_the_same_for_any_readers_and_restarts(blocks):
    expected = stream_of(blocks, 5)
    assert_equal(stream_of(blocks, 5, RunConfig(n_workers=2, n_threads=2)), expected)
    for part in range(2):
        rows = [{name: x[part::2] for name, x in row.items()} for row in expected]
        assert_equal(stream_of(blocks, 5, part=(part, 2)), rows)
    stream = stream_batches(blocks, ONE_THREAD)
    take(stream, 2)
    restored = stream_batches(blocks, RunConfig(n_threads=2))
    restored.set_state(json.loads(json.dumps(stream.get_state())))
    assert_equal(take(restored, 3), expected[2:])


def test_each_block_of_a_window_is_requested_once(blocks, store):
    store.forget_requests()
    stream = stream_batches(blocks, ONE_THREAD)
    take(stream, 3)
    stream.close()
    # An epoch has 5 blocks, of which one spans both shards: a request for the records
    # of each and one for their entries in the index. What is prefetched of the next
    # epoch may ask for blocks again.
    found = [(one.key, one.headers.get("range")) for one in store.requests]
    assert len(set(found)) == 12
    assert len(found) <= 12 + 6


@pytest.fixture
def pair(tmp_path, tiny):
    """A view of two sets, of 6 and of 12 samples, weighted 3 to 1."""
    samples = [tiny_export.sample(number) for number in range(18)]
    sets = {
        "few": Shards(tiny_export.write(tmp_path / "few", samples[:6], 1)),
        "many": Shards(tiny_export.write(tmp_path / "many", samples[6:], 1)),
    }
    return make_view(Mixture(sets, {"many": 1.0, "few": 3.0}), tiny)


def test_sets_take_turns_by_weight_and_each_has_epochs_of_its_own(pair):
    few = [pair.shards[i].sample_id for i in range(6)]
    seen = ids(stream_of(pair, 6))
    from_few = [one for one in seen if one in few]
    from_many = [one for one in seen if one not in few]
    assert (len(from_few), len(from_many)) == (36, 12)
    assert len(set(from_many)) == 12
    for start in range(0, 36, 6):
        assert set(from_few[start : start + 6]) == set(few)
    assert from_few[:6] != from_few[6:12]


def test_every_batch_of_a_mixture_has_its_shares(pair):
    few = [pair.shards[i].sample_id for i in range(6)]
    for batch in stream_of(pair, 6):
        assert sum(one in few for one in ids([batch])) == 6


@pytest.mark.slow
def test_a_mixture_is_the_same_for_any_number_of_workers_and_restarts(pair):
    expected = stream_of(pair, 5)
    assert_equal(stream_of(pair, 5, RunConfig(n_workers=2, n_threads=2)), expected)
    restored = stream_batches(pair, ONE_THREAD)
    restored.set_state({"global_next_index": 16})
    assert_equal(take(restored, 3), expected[2:])


def test_the_stand_in_of_a_broken_record_is_of_its_set(tmp_path, tiny):
    few = write_with_broken(tmp_path / "few", {0}, n=3)
    many = write_with_broken(tmp_path / "many", set(), n=24)
    view = make_view(make_mixture(few, many), tiny)
    own = {view.shards[i].sample_id for i in (1, 2)}
    assert {view(3 * i, 0)["sample_id"].tobytes() for i in range(20)} == own


def test_a_granularity_that_the_shards_lack_is_an_error(export, tiny):
    data = dataclasses.replace(tiny.data, granularity_weights={"shrt": 1.0})
    with pytest.raises(
        ValueError, match="shrt, expected granularities of the shards: short, detailed"
    ):
        check_request(make_mixture(export), data)


def test_a_batch_larger_than_the_data_is_an_error(export, tiny):
    data = dataclasses.replace(tiny.data, batch_size=25)
    with pytest.raises(ValueError, match="batch_size=25: expected at most 24"):
        check_request(make_mixture(export), data)
