"""The flags of stores, such as `--s3_endpoint_url`, in the launcher and its workers."""

import sys
import typing
from collections.abc import Mapping

if typing.TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

_flags: Mapping[str, typing.Any] = {}


def use(options: "PipelineOptions") -> None:
    """Passes Beam's flags of stores on to this process."""
    global _flags
    from apache_beam.io.filesystems import FileSystems

    FileSystems.set_options(options)
    _flags = options.get_all_options()


def flag(name: str) -> typing.Any:
    """The value of a flag, None if it was not given.

    A worker has them from Beam, which sets the options of its file systems there.
    """
    if not _flags and "apache_beam.io.filesystems" in sys.modules:
        options = sys.modules[
            "apache_beam.io.filesystems"
        ].FileSystems._pipeline_options
        return options.get_all_options().get(name) if options else None
    return _flags.get(name)
