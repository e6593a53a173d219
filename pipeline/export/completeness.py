"""Whether an export would change anything; without Beam, so that `status` can use it.

In: the manifest, and the names of captions' tables. Out: whether shards are those that
an export would write.
"""

from collections.abc import Mapping

from pipeline.config.captions import Granularity
from pipeline.engine.caption_tables import CaptionTables
from pipeline.engine.run_folder import RunFolder
from pipeline.export import manifest
from pipeline.export.samples import SampleTables
from pipeline.export.shard_formats import TFRECORD, ShardFormat
from pipeline.sources.shards import Unit
from pipeline.storage import files
from pipeline.storage.json_files import read_json


def is_complete(run: RunFolder, shard_format: ShardFormat = TFRECORD) -> bool:
    """Whether an export would change nothing; reads the manifest and lists folders."""
    folder = shard_format.path(run.root)
    written = read_json(files.join(folder, manifest.NAME))
    if written is None:
        return False
    captions = SampleTables.of(run).open_captions()
    names = [(unit, table_names_of(captions, unit)) for unit in run.units]
    inputs = manifest.inputs_fingerprint(manifest.header(run), names)
    expected = manifest.file_names(shard["name"] for shard in written["shards"])
    return written["fingerprints"]["inputs"] == inputs and names_in(folder) >= expected


def table_names_of(
    captions: Mapping[Granularity, CaptionTables], unit: Unit
) -> dict[str, tuple[str, ...]]:
    """Returns the tables of a unit's captions, by granularity."""
    return {g.name: tables.names(unit) for g, tables in captions.items()}


def names_in(folder: str) -> set[str]:
    """Returns the names of the files in a folder."""
    return {path.rsplit("/", 1)[-1] for path in files.list_folder(folder)}
