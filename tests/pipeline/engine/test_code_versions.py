"""A version that is raised by hand makes the tables of its kind again, no others."""

import pytest

from pipeline.config import fingerprint
from tests.support.tiny_run import SHORT, make_run, plain_rows


def folders(run) -> dict[str, str]:
    (source,) = run.config.sources
    return {
        "pairs": run.pairs(source).folder,
        "language": run.languages(source).folder,
        "embedding": run.embeddings(source).folder,
        "decisions": run.decisions.folder,
        "captions": run.captions(SHORT),
        "caption_language": run.caption_languages(SHORT).folder,
        "caption_alignment": run.caption_alignment(source, SHORT).folder,
        "flags": run.flags.folder,
    }


# What is made from it is made again, too.
@pytest.mark.parametrize(
    ("kind", "remade"),
    [
        ("language", {"language", "decisions", "flags"}),
        ("embedding", {"embedding", "decisions", "flags", "caption_alignment"}),
        ("decisions", {"decisions", "flags"}),
        ("caption_language", {"caption_language"}),
        ("flags", {"flags"}),
    ],
)
def test_a_version_of_code_names_other_tables(tmp_path, monkeypatch, kind, remade):
    run = make_run(tmp_path, {"a": plain_rows(1)})
    before = folders(run)
    monkeypatch.setitem(fingerprint.CODE_VERSIONS, kind, 99)
    after = folders(run)
    assert {name for name in before if before[name] != after[name]} == remade
