"""Lots reach a stage whether they travel in the graph or in files."""

import apache_beam as beam
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to

from pipeline.config.curation import ImageTextSource
from pipeline.engine import stage_runner
from pipeline.engine.lot_plan import single
from pipeline.sources.shards import Lot, Shard

WEB, SEEDS = ImageTextSource("web", "w"), ImageTextSource("web", "s", keep_all=True)


def lots(n: int) -> list[Lot]:
    """Half of them of a set of seeds with the name of the source."""
    return [single(Shard((WEB, SEEDS)[i % 2], f"gs://b/{i:06d}.tar")) for i in range(n)]


def expect_listed(root: str, n: int) -> None:
    with beam.Pipeline(FnApiRunner()) as pipeline:
        listed = pipeline | stage_runner.ListLots(root, lots(n))
        assert_that(listed, equal_to(lots(n)))


def test_a_few_lots_need_no_file(tmp_path):
    expect_listed(str(tmp_path), 3)
    assert not list(tmp_path.iterdir())


def test_many_lots_are_read_from_files_that_their_contents_name(tmp_path, monkeypatch):
    monkeypatch.setattr(stage_runner, "_MAX_IN_GRAPH", 4)
    monkeypatch.setattr(stage_runner, "_N_PER_FILE", 2)
    expect_listed(str(tmp_path), 5)
    names = [path.name for path in sorted((tmp_path / "lots").iterdir())]
    assert len(names) == 3
    expect_listed(str(tmp_path), 5)
    assert [path.name for path in sorted((tmp_path / "lots").iterdir())] == names


def test_many_lots_leave_the_graph_small(tmp_path):
    pipeline = beam.Pipeline(FnApiRunner())
    _ = pipeline | stage_runner.ListLots(str(tmp_path), lots(50_000))
    assert pipeline.to_runner_api().ByteSize() < 50_000
