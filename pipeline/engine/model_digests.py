"""The identities of the models of a recipe, by the names of their checkpoints.

In: a recipe. Out: a digest of each checkpoint, or what else identifies a model.
"""

from collections.abc import Mapping

from pipeline import records
from pipeline.config.captions import Granularity
from pipeline.config.curation import CurationConfig
from pipeline.config.duplicates import TorchDescriptor
from pipeline.models import checkpoints
from pipeline.sources import imported_captions
from pipeline.sources.imported_captions import ImportedFile
from pipeline.storage import files

Imports = Mapping[str, tuple[ImportedFile, ...]]  # by the glob of a granularity


def name_of(granularity: Granularity) -> str:
    """The name of a granularity's model: its checkpoint, with a revision if any."""
    revision = granularity.revision
    return granularity.checkpoint + (f"@{revision}" if revision else "")


def list_imports(config: CurationConfig) -> Imports:
    """The files of captions that a recipe imports."""
    imported = [g for g in config.granularities if g.captioner == "imported"]
    return {g.checkpoint: imported_captions.list_files(g) for g in imported}


def find(
    config: CurationConfig, imports: Imports, known: Mapping[str, str]
) -> dict[str, str]:
    """Model to digest; only those that are not known are read.

    Raises:
      ValueError: on a checkpoint that is not there or is not the one that the recipe
        names by its digest.
    """
    encoder = config.encoder.checkpoint
    digests = _of_descriptors(config) | dict(known)
    if encoder not in digests:
        digests[encoder] = _of_weights(encoder, revision="")
    for granularity in config.granularities:
        name = name_of(granularity)
        if name not in digests:
            digests[name] = _of_captioner(granularity, imports)
        if granularity.digest not in ("", digests[name]):
            raise ValueError(
                f"digest={granularity.digest!r} of granularity "
                f"{granularity.name!r}: expected {digests[name]!r}, that of "
                f"checkpoint {granularity.checkpoint!r}"
            )
    return digests


def _of_captioner(granularity: Granularity, imports: Imports) -> str:
    if granularity.captioner == "imported":
        return imported_captions.contents_digest(imports[granularity.checkpoint])
    if granularity.captioner == "gemini":
        return granularity.checkpoint  # all that an API says of its model
    if granularity.has_own_captioner:
        return name_of(granularity)  # what the recipe says of it
    return _of_weights(granularity.checkpoint, granularity.revision)


def _of_descriptors(config: CurationConfig) -> dict[str, str]:
    """Path to digest of the files of descriptors; ValueError if one is not there."""
    digests = {}
    for descriptor in config.selection.descriptors:
        if isinstance(descriptor, TorchDescriptor):
            path = descriptor.checkpoint
            if not files.is_file(path):
                name = f"checkpoint={path!r} of descriptor {descriptor.name!r}"
                raise ValueError(f"{name}: expected a TorchScript file")
            digests[path] = records.content_hash(files.read(path)).hex()
    return digests


def _of_weights(checkpoint: str, revision: str) -> str:
    folder = checkpoints.resolve_checkpoint(checkpoint, revision)
    return checkpoints.weights_digest(folder)
