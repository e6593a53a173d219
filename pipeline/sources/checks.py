"""The check of sources: columns of Parquet files and lines of drop lists.

In: the shards that are to be read, and the files of a drop list. Out: the table of the
list, or an error that names the column or the line.
"""

from collections.abc import Sequence

from pipeline.sources import drop_lists, shards
from pipeline.sources.drop_lists import ListFile
from pipeline.sources.shards import Shard


def check(unread: Sequence[Shard], drop_list: Sequence[ListFile], root: str) -> None:
    """Raises ValueError on a missing column, or a line of a list that is no entry.

    Args:
      unread: the shards that are still to be read.
      root: of the run folder, in which the table of a right list is made: a long one
        takes minutes, and is read only once.
    """
    shards.check_columns(unread)
    if drop_list:
        drop_lists.build(drop_list, root)  # `select` finds it
