"""Small runs with real images, scores by hand and decisions by `select`."""

import dataclasses
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline import records
from pipeline.config import curation
from pipeline.config.selection import (
    KeepLanguages,
    MinScore,
    NearSeeds,
    SelectionConfig,
)
from pipeline.engine import lot_plan
from pipeline.engine.run_folder import RunFolder
from pipeline.models import weights
from pipeline.report import page
from pipeline.report.run_comparison import OtherRun
from pipeline.selection import ledger as ledgers
from pipeline.selection import rules
from pipeline.selection.lot_decisions import open_lot
from pipeline.sources.shards import Lot, list_marks
from pipeline.storage.tables import to_table
from tests.support.score_tables import select
from tests.support.tiny_run import encoded

SELECTION = SelectionConfig(
    drop_rules=(
        rules.BoilerplateAltText(),
        rules.FewWords(2),
        rules.SmallImage(10),
        rules.ExtremeAspect(3.0),
    ),
    language=KeepLanguages(("en",), 0.2, 0.5),
    alignment=MinScore(0.2),
    max_evaluation_similarity=0.95,
    retrieval=NearSeeds(0.75),
)


@dataclasses.dataclass(frozen=True)
class ScoredRow:
    """One pair with its scores."""

    alt_text: str = "a red circle on a field"
    color: tuple[int, int, int] = (200, 60, 40)
    size: tuple[int, int] = (24, 16)
    angle: float = 0.6  # of the image embedding, radians
    score: float = 0.5
    code: str = "en"
    probability: float = 0.9
    error: str = ""
    url: str = ""
    key: str = ""


def random_rows(n: int) -> list[ScoredRow]:
    """Pairs that meet every step of SELECTION, and some share their image."""
    chance = np.random.default_rng(7)
    words = ("a", "red", "circle", "of", "glass", "IMG_2031.jpg", "field")
    rows = []
    for _ in range(n):
        n_words = int(chance.integers(1, 6))
        rows.append(
            ScoredRow(
                alt_text=" ".join(chance.choice(words, n_words)),
                color=(*chance.integers(0, 6, 2).tolist(), 0),
                size=(int(chance.integers(4, 50)), 12),
                angle=float(chance.uniform(0, 1.6)),
                score=float(np.float32(chance.uniform(-0.1, 0.9))),
                code=str(chance.choice(["en", "en", "en", "de"])),
                probability=float(chance.uniform()),
                error="truncated" if chance.uniform() < 0.05 else "",
            )
        )
    return rows


def make_run(
    root: Path,
    shards: Sequence[Sequence[ScoredRow]],
    *,
    selection: SelectionConfig = SELECTION,
    keep_all: bool = False,
    checkpoint: str = "",
) -> RunFolder:
    """A run whose shards, scores and decisions are there.

    `keep_all` keeps what is readable, which takes no pipeline. Scores are said to be
    those of the encoder in `checkpoint`.
    """
    roles = {
        "crawl": shards,
        "evaluation": [[ScoredRow(key="wren", angle=0.0, color=(0, 200, 0))]],
        "seeds": [[ScoredRow(key="rose", angle=0.7, color=(0, 0, 200))]],
    }
    sources = {
        role: curation.ImageTextSource(role, str(root / role / "*.tar"))
        for role in roles
    }
    settings = curation.CurationConfig(
        encoder=curation.EncoderConfig(checkpoint),
        selection=selection,
        sources=(sources["crawl"],),
        evaluation_sets=(sources["evaluation"],),
        seed_sets=(sources["seeds"],),
    )
    for role, shard_rows in roles.items():
        for number, rows in enumerate(shard_rows):
            _write_shard(root / role / f"{number:02d}.tar", rows)
    listed = {
        role: {source: list_marks(source)}
        for role, source in zip(lot_plan.ROLES, sources.values(), strict=True)
    }
    plan, planned = lot_plan.plan_lots(lot_plan.LotPlan(), listed, size=1)
    lots = [*planned.values()]
    plan.write(str(root / "run"))
    digest = weights.weights_digest(Path(checkpoint)) if checkpoint else "d0"
    run = RunFolder(str(root / "run"), settings, *lots, {checkpoint: digest}, plan=plan)
    for role_lots, shard_rows in zip(lots, roles.values(), strict=True):
        for lot, rows in zip(role_lots, shard_rows, strict=True):
            _write_scores(run, lot, rows)
    if keep_all:
        _keep(run)
    else:
        select(run)
    return run


def _keep(run: RunFolder) -> None:
    counts = []
    for lot in run.lots:
        decisions = open_lot(lot, run)
        ids = run.pairs(lot.source).read(lot.name, ["sample_id"])["sample_id"]
        run.decisions.write(lot.name, decisions.to_table(ids))
        counts.append(np.array([len(ids), *decisions.counts()]))
    ledger = ledgers.make_ledger({"crawl": sum(counts)})
    folders = (run.root, run.decisions.folder)
    ledgers.write_ledger(ledger, folders, run.pool_fingerprint)


def ledger_of(run: RunFolder) -> dict:
    """The ledger of a decided run."""
    return ledgers.restore_ledger(run)


def write_page(run: RunFolder, against: str = "") -> Path:
    """The report of a run."""
    other = OtherRun.open(against) if against else None
    return Path(page.write(run, ledger_of(run), other))


def _write_shard(path: Path, rows: Sequence[ScoredRow]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, row in enumerate(rows):
            data = _image(row)
            member = tarfile.TarInfo(f"{number:05d}.png")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def _image(row: ScoredRow) -> bytes:
    return b"no image" if row.error else encoded(row.color, row.size)


def _write_scores(run: RunFolder, lot: Lot, rows: Sequence[ScoredRow]) -> None:
    with tarfile.open(lot.shards[0].uri) as tar:
        offsets = [member.offset_data for member in tar.getmembers()]
    pairs = [
        _pair(number, row, offset)
        for number, (row, offset) in enumerate(zip(rows, offsets, strict=True))
    ]
    languages = [records.Language(row.code, row.probability) for row in rows]
    angles = np.array([row.angle for row in rows])
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float16)
    scores = pa.array([row.score for row in rows], pa.float32())
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 2)
    table = pa.table({"embedding": column, "alignment_score": scores})
    run.pairs(lot.source).write(lot.name, to_table(pairs, records.Pair))
    run.languages(lot.source).write(lot.name, to_table(languages, records.Language))
    run.embeddings(lot.source).write(lot.name, table)


def _pair(number: int, row: ScoredRow, offset: int) -> records.Pair:
    data = _image(row)
    text = "" if row.error else row.alt_text
    return records.Pair(
        sample_id=records.sample_id(data, text.encode()),
        key=row.key or f"{number:05d}",
        url=row.url,
        alt_text=text,
        image_hash=records.content_hash(data),
        image_format="" if row.error else "png",
        width=0 if row.error else row.size[0],
        height=0 if row.error else row.size[1],
        n_bytes=len(data),
        offset=offset,
        error=row.error,
    )
