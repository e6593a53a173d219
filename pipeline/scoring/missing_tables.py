"""The tables that `score` makes of each source, and which of them are missing.

Imports neither Beam nor a model, so that `status` can use it.
"""

import collections

from pipeline.config.curation import ImageTextSource
from pipeline.config.duplicates import Descriptor
from pipeline.engine.run_folder import RunFolder
from pipeline.sources.shards import Lot
from pipeline.storage.tables import LotTables

Measure = str | Descriptor  # "pairs", "languages", "embeddings", or by a descriptor
Tables = dict[Measure, LotTables]


def tables_by_source(run: RunFolder) -> dict[ImageTextSource, Tables]:
    """Tables to make of each source.

    Evaluation and seed images need no language, and only what is compared with
    evaluation images is described.
    """
    config = run.config
    source_to_tables: dict[ImageTextSource, Tables] = {
        source: {"pairs": run.pairs(source), "embeddings": run.embeddings(source)}
        for source in (*config.evaluation_sets, *config.seed_sets, *config.sources)
    }
    for source in config.sources:
        source_to_tables[source]["languages"] = run.languages(source)
    for source in (*config.evaluation_sets, *config.sources):
        for descriptor in config.selection.descriptors:
            tables = run.descriptions(source, descriptor)
            source_to_tables[source][descriptor] = tables
    return source_to_tables


def count_missing(run: RunFolder) -> dict[str, int]:
    """Counts the shards that lack a table, for each kind that some lack."""
    kind_to_n: collections.Counter[str] = collections.Counter()
    source_to_tables = tables_by_source(run)
    for source, measure_to_tables in source_to_tables.items():
        name_to_n = {u.name: len(u.shards) for u in run.all_lots if u.source == source}
        for measure, tables in measure_to_tables.items():
            kind = measure if isinstance(measure, str) else "descriptions"
            missing = name_to_n.keys() - tables.lot_names(known=name_to_n)
            kind_to_n[kind] += sum(name_to_n[name] for name in missing)
    return {kind: n for kind, n in kind_to_n.items() if n}


def incomplete_lots(run: RunFolder) -> tuple[Lot, ...]:
    """The lots that lack a table; lists the folders of tables."""
    known = [lot.name for lot in run.all_lots]
    source_to_complete = {
        source: frozenset.intersection(
            *(t.lot_names(known=known) for t in tables.values())
        )
        for source, tables in tables_by_source(run).items()
    }
    lots = (u for u in run.all_lots if u.name not in source_to_complete[u.source])
    return tuple(lots)
