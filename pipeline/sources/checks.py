"""The check of sources: columns of Parquet files and lines of drop lists.

In: the shards that are to be read, and the files of a drop list. Out: an error that
names the column or the line.
"""

from collections.abc import Sequence

from pipeline.sources import drop_lists, shards
from pipeline.sources.drop_lists import ListFile
from pipeline.sources.shards import Shard
from pipeline.storage import files


def check(unread: Sequence[Shard], drop_list: Sequence[ListFile], root: str) -> None:
    """Raises ValueError on a missing column, or a line of a list that is no entry.

    Args:
      unread: the shards that are still to be read.
      root: of the run folder; a list whose table is there was looked through before.
    """
    shards.check_columns(unread)
    if not files.is_file(drop_lists.table_path(drop_list, root)):
        drop_lists.check(drop_list)  # a long list takes minutes
