import numpy as np

from trainer.data.hashed_random import many_uniforms, uniforms


def test_the_draws_of_an_id_never_change():
    assert uniforms(2, "7:0:crop", b"id") == EXPECTED


def test_draws_differ_between_salts_and_ids():
    draws = {
        uniforms(1, salt, sample_id)
        for salt in ("0:0", "0:1", "1:0")
        for sample_id in (b"a", b"b")
    }
    assert len(draws) == 6


def test_draws_are_uniform_and_independent():
    pairs = [uniforms(2, "0", number.to_bytes(2)) for number in range(2000)]
    quarters = [0] * 4
    for first, second in pairs:
        assert 0 <= first < 1
        quarters[2 * (first >= 0.5) + (second >= 0.5)] += 1
    assert all(440 < count < 560 for count in quarters)


def test_many_draws_of_an_id_never_change_and_fewer_are_their_beginning():
    draws = many_uniforms(300, "7:0:mask", b"id")
    assert draws[:2].tolist() == EXPECTED_OF_MANY
    assert many_uniforms(5, "7:0:mask", b"id").tolist() == draws[:5].tolist()
    assert many_uniforms(300, "7:1:mask", b"id")[0] != draws[0]


def test_many_draws_are_uniform():
    draws = many_uniforms(20_000, "0", b"id")
    assert 0 <= draws.min() < draws.max() < 1
    counts, _ = np.histogram(draws, 10, (0, 1))
    assert np.abs(counts - 2000).max() < 200


EXPECTED_OF_MANY = [0.42326682774935354, 0.44281951090507843]
EXPECTED = (0.2265761780312051, 0.9707721408907684)
