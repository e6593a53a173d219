"""The engine's check: a run folder is used for one crawl.

In: a run. Out: an error on a folder that holds the scores of other shards alone.
"""

from pipeline.engine.run_folder import RunFolder
from pipeline.storage import files
from pipeline.storage.tables import LotTables
from recipes.safe_text import visible


def check(run: RunFolder) -> None:
    """Raises ValueError on a folder that holds the scores of other shards alone.

    A source may be added, and a crawl may grow; but with none of its shards it is the
    run of another recipe, whose training shards this one would replace.
    """
    if any(run.pairs(u.source).has(u.name) for u in run.lots[:1]):
        return
    scores = files.join(run.root, "scores")
    scored = {
        name
        for folder in files.folders(scores)
        if folder.startswith("pairs-")
        for name in LotTables(files.join(scores, folder)).lot_names()
    }
    lots = [x for x in run.plan.lots if x.role == "pool" and x.name in scored]
    found = {uri for lot in lots for uri, _ in lot.places}
    listed = (shard.uri for lot in run.lots for shard in lot.shards)
    if found and found.isdisjoint(listed):
        raise ValueError(
            f"--output {run.root}: expected a new folder or one with shards of this"
            f" recipe, found {len(found)} scored shards of another, such as"
            f" {visible(min(found))}"
        )
