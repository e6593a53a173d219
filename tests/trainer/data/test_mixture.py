import pickle

import pytest

from tests.support import tiny_export
from trainer.data.mixture import Mixture, open_mixture
from trainer.data.shards import Shards


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two sets: samples 0 to 4 and samples 5 to 7."""
    folder = tmp_path_factory.mktemp("sets")
    samples = [tiny_export.sample(number) for number in range(8)]
    tiny_export.write(folder / "web", samples[:5], 2)
    tiny_export.write(folder / "books", samples[5:], 1)
    return folder


def make(folders, **weights):
    names = ("web", "books")
    return Mixture({name: Shards(folders / name) for name in names}, weights)


def test_samples_come_set_by_set_in_the_order_of_names(folders):
    mixture = make(folders)
    expected = [tiny_export.sample(i).sample_id for i in (5, 6, 7, 0, 1, 2, 3, 4)]
    assert [mixture[i].sample_id for i in range(len(mixture))] == expected
    assert mixture.parts == (range(3), range(3, 8))
    assert [mixture.part(i).start for i in range(8)] == [0, 0, 0, 3, 3, 3, 3, 3]
    assert mixture.place(6).startswith("record 1 of ")
    assert "web/train-00001-of-00002" in mixture.place(6)


def test_without_weights_sets_count_by_their_size(folders):
    assert make(folders).weights == (3, 5)
    assert make(folders, web=1.0, books=4.0).weights == (4.0, 1.0)


def test_the_fingerprint_is_that_of_names_and_bytes(folders):
    web, books = Shards(folders / "web"), Shards(folders / "books")
    assert Mixture({"any": web}).fingerprint == web.fingerprint
    one = Mixture({"a": web, "b": books}).fingerprint
    assert Mixture({"b": books, "a": web}).fingerprint == one
    assert Mixture({"a": books, "b": web}).fingerprint != one


def test_granularities_are_those_of_all_sets(folders, tmp_path):
    tiny_export.write(tmp_path, [tiny_export.sample(9)], 1)
    tiny_export.write_manifest(tmp_path, granularities=["detailed", "long"])
    sets = {"a": Shards(folders / "web"), "b": Shards(tmp_path)}
    assert Mixture(sets).granularities == ("short", "detailed", "long")


def test_a_mixture_survives_pickling(folders):
    mixture = make(folders)
    assert pickle.loads(pickle.dumps(mixture))[7].sample_id == mixture[7].sample_id


def test_sets_are_opened_by_name_or_by_folder(folders):
    web, books = str(folders / "web"), str(folders / "books")
    named = open_mixture([f"web={web}", f"books={books}"], {"web": 1.0, "books": 2.0})
    assert named.weights == (2.0, 1.0)
    assert open_mixture([web, books], {web: 1.0, books: 2.0}).weights == (2.0, 1.0)
    assert len(open_mixture([web], {})) == 5


def test_a_folder_may_have_an_equals_sign(folders, tmp_path):
    path = tmp_path / "a=b"
    path.symlink_to(folders / "web")
    assert len(open_mixture([str(path)], {})) == 5


@pytest.mark.parametrize("weights", [{"web": 1.0}, {"web": 1.0, "boks": 1.0}])
def test_weights_of_other_sets_are_an_error(folders, weights):
    expected = f"weights of {', '.join(sorted(weights))}, expected .* books, web"
    with pytest.raises(ValueError, match=expected):
        make(folders, **weights)


def test_a_name_that_is_given_twice_is_an_error(folders):
    web = f"web={folders / 'web'}"
    with pytest.raises(ValueError, match="expected another name than web"):
        open_mixture([web, web], {})
