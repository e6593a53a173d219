"""Flags of Beam, which commands that run stages pass on to it."""

from collections.abc import Sequence
from typing import Any, TypeVar

from apache_beam.options.pipeline_options import PipelineOptions

from recipes import command_line

_Options = TypeVar("_Options", bound=PipelineOptions)


def beam_options(arguments: Sequence[str]) -> PipelineOptions:
    """Returns options of Beam; raises ValueError on a flag that Beam does not know."""
    parser = command_line.OneLineParser(
        add_help=False, allow_abbrev=False, conflict_handler="resolve"
    )
    for options in PipelineOptions.__subclasses__():
        options._add_argparse_args(parser)  # how Beam itself reads its flags
    _, unknown = parser.parse_known_args(arguments)
    if unknown:
        raise ValueError(f"{unknown[0]}: expected a flag of --help or of Beam")
    return _ReadOnce(list(arguments))


class _ReadOnce(PipelineOptions):
    """Options of Beam that parse the flags once for each of their classes.

    Beam asks for some of them at every transform, and would build a parser each time.
    """

    def view_as(self, cls: type[_Options]) -> _Options:
        views = self.__dict__.setdefault("_views", {})  # other attributes are flags
        if cls not in views:
            views[cls] = super().view_as(cls)
        return views[cls]

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        return {name: value for name, value in state.items() if name != "_views"}
