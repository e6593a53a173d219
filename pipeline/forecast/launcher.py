"""What a command costs its launcher, however many workers there are.

The launcher lists the shards once and reads the summaries of lots; nothing else there
grows with a run. Measured with the commands of `benchmarks/launcher.py`: 7.7 processor
seconds at 100 lots, and 57 at 10,000 (`benchmarks/results/launcher.md`).
"""

START_CPU_S = 7.2  # imports, and a look at a run of few lots
CPU_S_PER_LOT = 0.005  # of a `curate` that finds all lots done


def cpu_s(n_lots: int) -> float:
    """Processor seconds of a `curate` beside its jobs."""
    return START_CPU_S + CPU_S_PER_LOT * n_lots
