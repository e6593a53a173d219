"""The layout of a run folder, and the fingerprints that name its tables.

A fingerprint hashes what determines a table: the part of the configuration it depends
on, the identity of the model, and the fingerprints of the tables it is made from.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.config.captions import Granularity
from pipeline.config.curation import CurationConfig, ImageTextSource
from pipeline.config.duplicates import (
    ENCODER,
    Descriptor,
    EncoderDescriptor,
    TorchDescriptor,
)
from pipeline.config.fingerprint import FORMAT_VERSION, fingerprint, table_fingerprint
from pipeline.config.selection import SelectionConfig
from pipeline.engine import listed_lots, lot_plan, model_digests, removals
from pipeline.engine.caption_tables import CaptionTables
from pipeline.engine.lot_plan import LotPlan
from pipeline.engine.removals import Removals
from pipeline.records import Pair, content_hash
from pipeline.sources import drop_lists
from pipeline.sources.drop_lists import ListFile
from pipeline.sources.imported_captions import ImportedFile
from pipeline.sources.shards import Lot, list_marks
from pipeline.storage import files, patterns
from pipeline.storage.tables import LotTables, schema_of

CONFIG_NAME = "config.json"
LEDGER_NAME = "ledger.json"
SET_ROLES = ("evaluation", "seeds")  # keys of the ledger, of what is compared with

_FORMAT_TO_FAULT = {
    1: "its images were read as they are stored, not as they are seen (lying, in"
    " another profile's colors), and changed shards went unnoticed",
    2: "it has a table for each shard, not for each lot of shards",
}


def check_format(flag: str, folder: str) -> None:
    """Raises ValueError on a run folder whose tables mean something else than now."""
    path = files.join(folder, CONFIG_NAME)
    try:
        found = json.loads(files.read(path)).get("format_version")
    except FileNotFoundError:
        return
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{flag} {folder}: {CONFIG_NAME} is damaged: expected an object in JSON."
            " Remove that file and run the command of the run again, with its --config:"
            " it is written again, and no table is made twice"
        ) from error
    if found == FORMAT_VERSION:
        return
    fault = "another version of the program made it"
    if isinstance(found, int):
        fault = _FORMAT_TO_FAULT.get(found, fault)
    raise ValueError(
        f"{flag} {folder}: expected format version {FORMAT_VERSION}, found"
        f" {found!r:.20}: {fault}. Name a new folder and curate again; this one stays"
        " as it is, and its training shards can still be trained on"
    )


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """The output folder of a recipe, its lots and its model identities."""

    root: str
    config: CurationConfig
    lots: tuple[Lot, ...]
    evaluation_lots: tuple[Lot, ...]
    seed_lots: tuple[Lot, ...]
    checkpoint_to_digest: dict[str, str]
    glob_to_files: Mapping[str, tuple[ImportedFile, ...]] = dataclasses.field(
        default_factory=dict
    )
    drop_list: tuple[ListFile, ...] = ()
    # Of files that the settings of `select` name, beside the drop list.
    path_to_digest: Mapping[str, str] = dataclasses.field(default_factory=dict)
    compared_by: Descriptor = ENCODER
    plan: LotPlan = dataclasses.field(default_factory=LotPlan)
    left_out: tuple[str, ...] = ()  # lines on what is listed and was removed
    is_sample: bool = False  # then its decisions are not those of the run

    @classmethod
    def open(
        cls,
        root: str,
        config: CurationConfig,
        known_digests: Mapping[str, str] | None = None,
        *,
        is_listed: bool = False,
    ) -> "RunFolder":
        """Lists the shards and hashes the checkpoints of a recipe.

        Args:
          is_listed: take the lots of the last command, and list no shards.
          known_digests: by checkpoint, of those that need not be there; those that it
            lacks are hashed.

        Raises:
          ValueError: on a glob without a match, a checkpoint that is not there, a file
            that cannot be read, and while a removal is not complete.
        """
        imports = model_digests.list_imports(config)
        digests = model_digests.find(config, imports, known_digests or {})
        root = root.rstrip("/") or "/"  # fingerprints hold what is behind it
        planned = (_planned_lots if is_listed else _plan_lots)(root, config)
        plan, lots, left_out = planned
        return cls(
            root=root,
            config=config,
            lots=lots["pool"],
            evaluation_lots=lots["evaluation"],
            seed_lots=lots["seeds"],
            plan=plan,
            left_out=left_out,
            checkpoint_to_digest=digests,
            glob_to_files=imports,
            drop_list=drop_lists.list_files(config.selection.drop_list, root),
            path_to_digest={p: _digest(p) for p in config.selection.named_files},
        )

    @property
    def all_lots(self) -> tuple[Lot, ...]:
        """Lots of the pool and of the sets that it is compared with."""
        return (*self.lots, *self.evaluation_lots, *self.seed_lots)

    @property
    def role_to_lots(self) -> dict[lot_plan.Role, tuple[Lot, ...]]:
        """The lots by what they are for."""
        each = (self.lots, self.evaluation_lots, self.seed_lots)
        return dict(zip(lot_plan.ROLES, each, strict=True))

    def write_plan(self) -> None:
        """Writes down which lots there are, and which of them the run has now."""
        self.plan.write(self.root)
        listed_lots.write(self.root, self.config, self.role_to_lots)

    def without_lots(self) -> "RunFolder":
        """A copy for workers, whose size does not grow with the number of lots."""
        none: dict = {"lots": (), "evaluation_lots": (), "seed_lots": ()}
        return dataclasses.replace(self, **none, plan=LotPlan(), left_out=())

    def comparing(self, descriptor: Descriptor) -> "RunFolder":
        """The run as steps see it that compare images by that descriptor."""
        return dataclasses.replace(self, compared_by=descriptor)

    def pairs(self, source: ImageTextSource) -> LotTables:
        """Rows of `records.Pair`: every pair of a shard, in its order."""
        return self._scores("pairs", *self._pairs_settings(source))

    def languages(self, source: ImageTextSource) -> LotTables:
        """Rows of `records.Language`, one per row of `pairs`."""
        detector = self.config.language_detector
        return self._scores("language", detector, self._pairs_fingerprint(source))

    def embeddings(self, source: ImageTextSource) -> LotTables:
        """Image embedding and alignment score, one row a row of `pairs`."""
        encoder = self.config.encoder
        digest = self.checkpoint_to_digest[encoder.checkpoint]
        parts = (digest, encoder.dtype, self._pairs_fingerprint(source))
        # Only where it is not the default, so that older tables keep their names.
        token = () if encoder.cls_token == "alt_text" else (encoder.cls_token,)
        return self._scores("embedding", *parts, *token)

    def similarities(self, source: ImageTextSource, set_fingerprint: str) -> LotTables:
        """Stored similarities to the images of one set (see `similarity_cache`)."""
        vectors = self.vectors(source).folder.removeprefix(self.root)
        return self._scores("similarity", vectors, set_fingerprint)

    def descriptions(
        self, source: ImageTextSource, descriptor: Descriptor
    ) -> LotTables:
        """`embedding` by a descriptor, one row a row of `pairs`."""
        if isinstance(descriptor, EncoderDescriptor):
            return self.embeddings(source)
        identity: tuple = (type(descriptor).__name__,)
        if isinstance(descriptor, TorchDescriptor):
            digest = self.checkpoint_to_digest[descriptor.checkpoint]
            identity = (*identity, digest, descriptor.size_px)
        parts = (*identity, self._pairs_fingerprint(source))
        return self._scores("description", *parts, name=descriptor.name)

    def vectors(self, source: ImageTextSource) -> LotTables:
        """`embedding` by the descriptor that images are compared by."""
        return self.descriptions(source, self.compared_by)

    @property
    def decisions(self) -> LotTables:
        """Rows of `records.Decision`, one per row of `pairs`."""
        return LotTables(files.join(self.root, "decisions", self.decisions_fingerprint))

    @property
    def decisions_fingerprint(self) -> str:
        """Of all that decides on pairs, but the pool itself: the pool grows."""
        keep_all = [s.name for s in self.config.sources if s.keep_all]
        references = (self.evaluation_lots, self.seed_lots)
        # The share decides whether `select` goes on, and on no pair.
        share = SelectionConfig.max_unreadable_reference_share
        any_share = dataclasses.replace(
            self.config.selection, max_unreadable_reference_share=share
        )
        selection = (
            any_share,
            drop_lists.contents_digests(self.drop_list),
            *filter(None, (dict(self.path_to_digest),)),
        )
        return table_fingerprint(
            "decisions",
            *selection,
            keep_all,
            [self._relative(self.languages(source)) for source in self.config.sources],
            [self._relative(self.embeddings(source)) for source in self.config.sources],
            [self._tables_of(lots) for lots in references],
            *self._descriptor_folders,
            *((self._tables_of(self.lots),) if self.is_sample else ()),
        )

    @property
    def pool_fingerprint(self) -> str:
        """Of the decisions on this pool: of all that decides on its pairs, and of the
        pool."""
        tables = sorted(self._tables_of(self.lots))  # whenever each lot came
        return fingerprint(self.decisions_fingerprint, tables)

    def _tables_of(self, lots: Iterable[Lot]) -> list[tuple[str, str]]:
        """What is scored of some lots, by source name."""
        lots = list(lots)
        source_to_folder = {
            source: self._relative(self.embeddings(source))
            for source in {lot.source for lot in lots}
        }
        return [
            (lot.source.name, f"{source_to_folder[lot.source]}/{lot.name}")
            for lot in lots
        ]

    def _relative(self, tables: LotTables) -> str:
        return tables.folder.removeprefix(self.root)

    @property
    def _descriptor_folders(self) -> list[str]:
        """Folders of descriptor tables that decisions depend on, but embeddings."""
        sources = (*self.config.sources, *self.config.evaluation_sets)
        return [
            self.descriptions(source, descriptor).folder.removeprefix(self.root)
            for descriptor in self.config.selection.descriptors
            for source in sources
        ]

    def captions(self, granularity: Granularity) -> str:
        """Folder of the captions of one granularity."""
        name = f"{granularity.name}-{self.granularity_fingerprint(granularity)}"
        return files.join(self.root, "captions", name)

    def granularity_fingerprint(self, granularity: Granularity) -> str:
        """Identity of a granularity's captions; its name and batch size are no part."""
        model = (granularity.captioner, self.model_digest(granularity))
        image = (granularity.resampling, granularity.dtype)
        text = (granularity.prompt, granularity.max_new_tokens, granularity.decoding)
        return table_fingerprint("captions", *model, *image, *text)

    def model_digest(self, granularity: Granularity) -> str:
        """Identity of a granularity's captioner."""
        return self.checkpoint_to_digest[model_digests.name_of(granularity)]

    def caption_languages(self, granularity: Granularity) -> LotTables:
        """Rows of `records.Language`; one table per table of captions, of its name."""
        detector = self.config.language_detector
        captions = self.granularity_fingerprint(granularity)
        return self._scores("caption_language", detector, captions)

    def caption_alignment(
        self, source: ImageTextSource, granularity: Granularity
    ) -> LotTables:
        """`alignment_score`; one table per table of captions, of its name."""
        embeddings = self.embeddings(source).folder.removeprefix(self.root)
        captions = self.granularity_fingerprint(granularity)
        return self._scores("caption_alignment", embeddings, captions)

    @property
    def flags(self) -> LotTables:
        """Rows of `records.FlaggedCaption`."""
        return LotTables(files.join(self.root, "flags", self.flags_fingerprint))

    @property
    def flags_fingerprint(self) -> str:
        """Of the settings that flags depend on; what else they do is in summaries."""
        captions = [
            (g.name, g.n_words, self.granularity_fingerprint(g))
            for g in self.config.granularities
        ]
        settings = (self.config.caption_quality, self.config.language_detector)
        return table_fingerprint(
            "flags", settings, self.decisions_fingerprint, captions
        )

    @property
    def flag_inputs_fingerprint(self) -> str:
        """Of all that flags depend on: settings, decisions on this pool, and names of
        caption tables, which identify what is in them."""
        granularities = self.config.granularities
        names = [lot.name for lot in self.lots]
        tables = [
            CaptionTables.open(self.captions(g), known=names) for g in granularities
        ]
        lots = sorted(
            (lot.source.name, lot.name, [found.names(lot) for found in tables])
            for lot in self.lots
        )
        return fingerprint(self.flags_fingerprint, self.pool_fingerprint, lots)

    def imported_files(self, granularity: Granularity) -> tuple[ImportedFile, ...]:
        """Where the captions of an imported granularity come from, by contents."""
        return self.glob_to_files[granularity.checkpoint]

    def _pairs_fingerprint(self, source: ImageTextSource) -> str:
        return table_fingerprint("pairs", *self._pairs_settings(source))

    def _pairs_settings(self, source: ImageTextSource) -> tuple:
        columns = (source.image_column, source.alt_text_column, source.key_column)
        settings = (columns, source.needs_alt_text, self.config.limits)
        return (*settings, schema_of(Pair).names)

    def _scores(self, kind: str, *parts: Any, name: str = "") -> LotTables:
        """The tables of a measure, whose name is mostly that of its kind."""
        folder = f"{name or kind}-{table_fingerprint(kind, *parts)}"
        return LotTables(files.join(self.root, "scores", folder))


_Planned = tuple[LotPlan, Mapping[lot_plan.Role, tuple[Lot, ...]], tuple[str, ...]]


def _plan_lots(root: str, config: CurationConfig) -> _Planned:
    """Lists the shards of all sources and sets, and divides them into lots."""
    removals.expect_finished(root)
    known, removed = LotPlan.read(root), Removals.read(root)
    listed = {
        role: {s: list_marks(s, known.paths(role, s.name)) for s in each}
        for role, each in listed_lots.sets_of(config).items()
    }
    pool = listed["pool"]
    left_out: Iterable[str] = ()
    if removed.sources or removed.shards:  # else a million are asked about for nothing
        left_out = removed.describe_left_out(
            {s.name: found for s, found in pool.items()}
        )
        pool = {
            s: {u: mark for u, mark in found.items() if not removed.is_out(s.name, u)}
            for s, found in pool.items()
        }
    if len(config.sources) > 1:
        patterns.expect_different((uri, s.name) for s in pool for uri in pool[s])
    listed["pool"] = pool
    return *lot_plan.plan_lots(known, listed, config.shards_per_lot), tuple(left_out)


def _planned_lots(root: str, config: CurationConfig) -> _Planned:
    plan = LotPlan.read(root)
    return plan, listed_lots.lots_of(config, plan, root), ()


def _digest(path: str) -> str:
    try:
        return content_hash(files.read(path)).hex()
    except OSError as error:
        raise ValueError(f"{path}: expected a file to read: {error}") from error
