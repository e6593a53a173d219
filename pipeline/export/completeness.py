"""Which lots an export would write; without Beam, so that `status` can use it.

In: the manifest, the receipts of lots and the summaries of their tables. Out: whether
there is anything to do, and for which lots. Nothing is asked for each shard.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.engine.run_folder import RunFolder
from pipeline.engine.summaries import Summaries, read_folders
from pipeline.export import manifest, receipts
from pipeline.export.receipts import Inputs, Receipts
from pipeline.export.samples import SampleTables
from pipeline.export.shard_formats import TFRECORD, ShardFormat
from pipeline.sources.shards import Lot
from pipeline.storage import files
from pipeline.storage.json_files import read_json
from pipeline.storage.tables import LotTables


def is_complete(run: RunFolder, shard_format: ShardFormat = TFRECORD) -> bool:
    """Whether an export would change nothing.

    Pairs that could not be exported are tried again, so with some of them it would.
    It would also remove what the last one left when it was killed behind the swap of
    its manifest.
    """
    folder = shard_format.path(run.root)
    written = read_json(files.join(folder, manifest.NAME))
    if written is None or written.get("n_failed") != 0:
        return False
    found = [(lot, inputs) for lot, inputs in lot_inputs(run) if inputs is not None]
    if len(found) < len(run.lots):
        return False
    expected = manifest.inputs_fingerprint(manifest.header(run), found)
    if written["fingerprints"]["inputs"] != expected:
        return False
    named = manifest.file_names(shard["name"] for shard in written["shards"])
    there = names_in(folder)
    return there >= named and not manifest.left_out(there, named)


def stale_lots(run: RunFolder, shard_format: ShardFormat = TFRECORD) -> list[Lot]:
    """Lots whose shards are to be made, or looked at again."""
    folder = shard_format.path(run.root)
    there = names_in(folder)
    stale = []
    found = Receipts.of(folder)
    for lot, inputs in lot_inputs(run):
        receipt = found.find(lot)
        if receipt is None or receipt.inputs != inputs or receipt.failures:
            stale.append(lot)
            continue
        if not there >= manifest.file_names(shard.name for shard in receipt.shards):
            stale.append(lot)
    return stale


def lot_inputs(run: RunFolder) -> Iterator[tuple[Lot, Inputs | None]]:
    """What the shards of each lot are made from; None if a table of it is missing."""
    tables = SampleTables.of(run)
    summaries = _read_summaries(tables)
    captions = tables.open_captions()
    settings = receipts.settings_of(run.config, tables)

    def read_summary(of: LotTables, name: str) -> Mapping[str, Any]:
        return summaries[of.folder][name]

    for lot in run.lots:
        try:
            found = receipts.inputs_of(lot, tables, captions, settings, read_summary)
            yield lot, found
        except KeyError:
            yield lot, None


def _read_summaries(tables: SampleTables) -> dict[str, Summaries]:
    """The summaries of all tables that samples are joined from, by folder."""
    flags = tables.flags.tables
    folders = {
        *(found.folder for found in tables.source_to_pairs.values()),
        *(found.folder for found in tables.source_to_embeddings.values()),
        tables.decisions.folder,
        *tables.granularity_to_folder.values(),
        *(() if flags is None else (flags.folder,)),
    }
    return {found.folder: found for found in read_folders(sorted(folders))}


def names_in(folder: str) -> set[str]:
    """Returns the names of the files in a folder."""
    return {path.rsplit("/", 1)[-1] for path in files.list_folder(folder)}
