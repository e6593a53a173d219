"""Flags of Beam, which commands that run stages pass on to it."""

from collections.abc import Sequence

from apache_beam.options.pipeline_options import PipelineOptions

from recipes import command_line


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
    return PipelineOptions(list(arguments))
