"""Tables of captions are written again where they lie; a kill between is made good."""

from pathlib import Path

import pytest

from pipeline.engine import caption_tables
from pipeline.records import FinishReason, Language, SyntheticCaption
from pipeline.removal.lot_tables import Folders, Images, rewrite_captions
from pipeline.storage.tables import LotTables, to_table
from tests.support.tiny_run import bytes_of

BASE = "web-00000"
TABLE = f"{BASE}.0123456789ab"
HASHES = [bytes([i]) * 16 for i in range(3)]
IMAGES = Images(gone=frozenset(HASHES[:1]), left=frozenset(HASHES[1:]))


def write_tables(root: Path) -> Folders:
    captions, languages = (LotTables(str(root / n)) for n in ("captions", "languages"))
    rows = [
        SyntheticCaption(one, b"p", 0, f"a text {i}", 3, str(FinishReason.STOP), -0.5)
        for i, one in enumerate(HASHES)
    ]
    facts = caption_tables.facts_of(rows)
    captions.write(TABLE, to_table(rows, SyntheticCaption), facts)
    of_texts = [Language("en", 1.0) for _ in rows]
    languages.write(TABLE, to_table(of_texts, Language))
    return Folders((), (), (), (), (), (captions,), (languages,))


@pytest.mark.parametrize("killed_in", ["languages", "captions"])
def test_a_table_without_its_new_summary_gets_it_in_the_next_attempt(
    tmp_path, killed_in
):
    quiet, killed = tmp_path / "quiet", tmp_path / "killed"
    rewrite_captions(write_tables(quiet), BASE, BASE, IMAGES)
    folders = write_tables(killed)
    done = ["languages"] if killed_in == "captions" else []
    for name in done:
        for path in (quiet / name).iterdir():
            (killed / name / path.name).write_bytes(path.read_bytes())
    table = (quiet / killed_in / f"{TABLE}.parquet").read_bytes()
    (killed / killed_in / f"{TABLE}.parquet").write_bytes(table)
    rewrite_captions(folders, BASE, BASE, IMAGES)
    assert bytes_of(killed) == bytes_of(quiet)
