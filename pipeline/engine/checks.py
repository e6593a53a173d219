"""The engine's check: a run folder is used for one crawl.

In: a run. Out: an error on a folder that holds the scores of other shards alone.
"""

from pipeline.engine.run_folder import RunFolder
from pipeline.sources.shards import shard_name_of
from pipeline.storage import files
from pipeline.storage.tables import UnitTables


def check(run: RunFolder) -> None:
    """Raises ValueError on a folder that holds the scores of other shards alone.

    A source may be added, and a crawl may grow; but with none of its shards it is the
    run of another recipe, whose training shards this one would replace.
    """
    if any(files.is_file(run.pairs(u.source).path(u.name)) for u in run.units[:1]):
        return
    scores = files.join(run.root, "scores")
    found = {
        shard_name_of(name)
        for folder in files.folders(scores)
        if folder.startswith("pairs-")
        for name in UnitTables(files.join(scores, folder)).unit_names()
    }
    found -= {unit.shard_name for unit in (*run.evaluation_units, *run.seed_units)}
    if found and found.isdisjoint(unit.shard_name for unit in run.units):
        raise ValueError(
            f"--output {run.root}: expected a new folder or one with shards of this"
            f" recipe, found {len(found)} scored shards of another, such as"
            f" {min(found)}"
        )
