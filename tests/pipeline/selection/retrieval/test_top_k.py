import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.selection.retrieval import top_k
from pipeline.selection.retrieval.top_k import Candidates, TopKPerGroup

WORDS = st.sampled_from([0, 1, 2**63])
ENTRANTS = st.tuples(
    st.integers(0, 2),  # group
    st.sampled_from([-1.0, 0.0, 0.5]),  # rank
    st.tuples(WORDS, WORDS),  # sample id
    st.sampled_from("abc"),  # lot
)


def block(lot_name: str, n_places: int, rows: list[tuple]) -> Candidates:
    """Candidates of one lot: group, rank, sample id, row."""
    group, rank, sample_id, row = map(np.array, zip(*rows, strict=True))
    return Candidates.of_lot(
        lot_name,
        n_places,
        group=group,
        rank=rank,
        sample_id=sample_id.astype(np.uint64),
        row=row,
    )


def as_tuples(candidates: Candidates) -> list[tuple]:
    names = [candidates.lot_names[lot] for lot in candidates.lot]
    columns = (
        candidates.group,
        candidates.rank,
        candidates.sample_id,
        names,
        candidates.row,
    )
    return [(g, r, tuple(i), n, row) for g, r, i, n, row in zip(*columns, strict=True)]


@settings(max_examples=40, deadline=None)
@given(
    candidates=st.lists(ENTRANTS, min_size=1, max_size=30),
    n_places=st.integers(1, 4),
    rng=st.randoms(),
)
def test_winners_are_those_of_brute_force_in_any_order_of_blocks(
    candidates, n_places, rng
):
    numbered = [(*entrant, row) for row, entrant in enumerate(candidates)]
    expected = [
        entrant
        for group in range(3)
        for entrant in sorted(e for e in numbered if e[0] == group)[:n_places]
    ]
    blocks = [block(lot, n_places, [(g, r, i, row)]) for g, r, i, lot, row in numbered]
    rng.shuffle(blocks)
    assert as_tuples(top_k.top_k(blocks)) == expected

    combine = TopKPerGroup()
    cut = rng.randint(0, len(blocks))
    accumulators = [combine.create_accumulator() for _ in range(2)]
    for i, entrant in enumerate(blocks):
        accumulators[i < cut] = combine.add_input(accumulators[i < cut], entrant)
    merged = combine.merge_accumulators(map(combine.compact, accumulators))
    assert as_tuples(combine.extract_output(merged)) == expected


def test_a_worker_keeps_no_more_than_the_winners_of_what_it_has_seen():
    combine = TopKPerGroup()
    accumulator = combine.create_accumulator()
    for row in range(100):
        candidates = block("a", 2, [(0, 0.5, (0, row), row)])
        accumulator = combine.add_input(accumulator, candidates)
        assert sum(len(kept.row) for kept in accumulator) <= 17
    assert combine.extract_output(accumulator).row.tolist() == [0, 1]


def test_what_a_set_wants_goes_to_its_lot_once():
    rows = [(0, 0.1, (0, 1), 7), (1, 0.1, (0, 1), 7), (1, 0.2, (0, 2), 3)]
    won = top_k.top_k([block("b", 2, rows), block("a", 2, rows[:1])])
    found = dict(top_k.hits_by_lot("flowers", won))
    assert {name: want.row.tolist() for name, want in found.items()} == {
        "a": [7],
        "b": [3, 7],
    }
    assert {want.set_name for want in found.values()} == {"flowers"}
