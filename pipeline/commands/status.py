"""The commands `status` and `remove`: what a run folder holds, and less of it."""

import json
import time
from collections.abc import Sequence

from pipeline.captioning import flag_counts, spending
from pipeline.captioning.coverage import count_captioned
from pipeline.engine import engines, progress, run_lock
from pipeline.engine.jobs import EngineError
from pipeline.engine.run_folder import RunFolder
from pipeline.selection import ledger, reference_accounts
from pipeline.storage import files


def remove_captions(run: RunFolder, names: Sequence[str]) -> None:
    """Removes captions by `NAME-FINGERPRINT`; ValueError if they are not there."""
    folder = files.join(run.root, "captions")
    if not names:
        raise ValueError("remove: expected --granularity NAME-FINGERPRINT")
    there = files.folders(folder)
    for name in names:
        if name not in there:
            expected = ", ".join(sorted(there)) or "captions to remove"
            raise ValueError(f"--granularity {name}: expected one of {expected}")
    for name in dict.fromkeys(names):
        files.delete_folder(folder, name)
        print(f"removed: {files.join(folder, name)}")


def print_status(run: RunFolder) -> None:
    """What is there: scored shards, decisions, captions by granularity and flag.

    Captions of other prompts, models or recipes stay until they are removed by name.
    """
    if at_work := progress.describe(run.root, time.time()):
        print(at_work)
    if job := run_lock.named_job(run.root):
        try:
            print(f"{job}: {engines.state_of(job)}")
        except EngineError as error:
            print(f"{job}: not known, as {error}")
    scored = [run.embeddings(unit.source).path(unit.name) for unit in run.units]
    print(f"scored: {sum(map(files.is_file, scored))} of {len(scored)} shards")
    found = ledger.read(run)
    print(f"selected: {json.dumps(found, indent=1) if found else 'no'}")
    for line in reference_accounts.warnings(run, found or {}):
        print(line)
    name_to_flags = flag_counts.count_flags(run)
    coverage = count_captioned(run)
    for granularity in run.config.granularities:
        n_captioned, n_kept = coverage.counts(granularity.name)
        fingerprint = run.granularity_fingerprint(granularity)
        print(f"{granularity.name}-{fingerprint}: {n_captioned:,} of {n_kept:,} kept")
        if spent := spending.describe(run, granularity):
            print(f"  {spent}")
        if flagged := name_to_flags.get(granularity.name):
            flags = ", ".join(
                f"{name} {n:,}" for name, n in sorted(flagged.flag_to_count.items())
            )
            n_flagged, n_captions = flagged.n_flagged, flagged.n_captions
            print(f"  flagged: {n_flagged:,} of {n_captions:,} captions", end="")
            print(f" ({flags})" if flags else "")
    current = {run.captions(granularity) for granularity in run.config.granularities}
    folder = files.join(run.root, "captions")
    for name in sorted(files.folders(folder)):
        if files.join(folder, name) not in current:
            print(f"{name}: not of this recipe")
