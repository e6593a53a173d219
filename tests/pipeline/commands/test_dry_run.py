"""`--dry-run` says what would be made and what it would cost, and makes nothing."""

import pathlib

import pytest

from pipeline import run
from tests.support import small_run
from tests.support.tiny_run import bytes_of

PAID = """
import dataclasses
local = get_config

def get_config():
    paid = captions.Granularity(
        "paid", "127", "is it bright?", 8, captioner="examples.captioner:Brightness",
        decoding=captions.Decoding(temperature=1.0, n_samples=2),
        spend=captions.Spend(max_usd={max_usd}, usd_per_request=0.01),
    )
    short, _ = local().granularities
    return dataclasses.replace(local(), granularities=(short, paid))
"""


@pytest.fixture(scope="module")
def web(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("web")
    small_run.write(folder)
    text = (folder / "recipe.py").read_text()
    for name, max_usd in (("recipe", 1.0), ("poor", 0.51)):
        (folder / f"{name}.py").write_text(text + PAID.format(max_usd=max_usd))
    return folder


def words(command: str, web: pathlib.Path, recipe: str = "recipe") -> list[str]:
    found = list(small_run.arguments(command, str(web), str(web / "run")))
    found[2] = str(web / f"{recipe}.py")
    return found


def said(capsys, *arguments: str) -> list[str]:
    run.main(arguments)
    return capsys.readouterr().out.splitlines()


def test_nothing_is_known_of_captions_before_pairs_are_decided(web, capsys):
    before = bytes_of(web)
    lines = said(capsys, *words("curate", web), "--dry-run")
    assert lines[0].startswith("would be made: ")
    assert "of 6 shards" in lines[0]
    assert lines[1:] == ["captions: not known before `select` has decided"]
    assert bytes_of(web) == before


def test_images_requests_tokens_and_money_are_those_that_the_stage_then_makes(
    web, capsys
):
    for stage in ("score", "select"):
        run.main(words(stage, web))
    before = bytes_of(web)
    capsys.readouterr()
    lines = said(capsys, *words("caption", web), "--dry-run")
    assert lines == [
        "short: 26 images, 26 requests, at most 104 new tokens",
        "paid: 26 images, 52 requests, 0.52 USD, at most 416 new tokens",
        "  asked for: 0 requests, 0.00 USD, of at most 100 requests, 1.00 USD",
    ]
    lines = said(capsys, *words("caption", web, "poor"), "--dry-run")
    refused = (
        "spend of granularity 'paid': 52 requests, 0.52 USD are missing after 0 before:"
        " expected at most 51 requests, 0.51 USD in all"
    )
    assert lines[-1].startswith(f"  would be refused: {refused}")
    assert bytes_of(web) == before
    with pytest.raises(SystemExit) as stopped:
        run.main(words("caption", web, "poor"))
    assert stopped.value.code == 1
    assert refused in capsys.readouterr().err
    (line,) = said(capsys, *words("caption", web))
    assert "captions_written 78" in line
    assert "requests 52" in line
    status = said(capsys, "status", "--output", str(web / "run"))
    spent = "  asked for: 52 requests, 0.52 USD, of at most 100 requests, 1.00 USD"
    assert spent in status
    lines = said(capsys, *words("caption", web), "--dry-run", "--granularity", "paid")
    assert lines == [
        "paid: 0 images, 0 requests, 0.00 USD, at most 0 new tokens",
        spent,
    ]
