"""Compares what `forecast` says of larger crawls with what they take.

Draws score tables as `benchmarks.select` does, measures the bytes of the smallest crawl
as `forecast` measures its sample, and compares bytes and files of each larger one.
Models and images are no part of it. Prints a line of JSON for each size.

    python -m benchmarks.growth --rows 10000 100000 1000000 3000000

With `--select N`, it compares seconds of `select` in place of bytes: those that the
whole pool takes, with those that `forecast` expects of a sample of N shards.
"""

import argparse
import dataclasses
import json
import logging
import tempfile

from apache_beam.options.pipeline_options import PipelineOptions

from benchmarks import select
from pipeline import curate
from pipeline.commands.forecast import time_select
from pipeline.engine.run_folder import RunFolder
from pipeline.forecast.costs import Stopwatch
from pipeline.scoring import footprint
from pipeline.storage import files

_N_REFERENCES = 1_000  # of each set


def measured_bytes(run: RunFolder) -> float:
    """Bytes of the tables of all lots of a pool."""
    return float(footprint.table_bytes(run, run.lots).sum())


def compare_select(root: str, n_rows: int, n_shards: int) -> None:
    """Prints the processor seconds of `select`, forecast and measured."""
    logging.disable(logging.WARNING)
    run, options = select.describe_run(root, n_rows), PipelineOptions([])
    sample = dataclasses.replace(run, lots=run.lots[:n_shards], is_sample=True)
    time = time_select(sample, options)["select"]
    with Stopwatch() as watch:
        curate.select(run, options)
    forecast = time.start_cpu_s + time.cpu_s_per_pair * n_rows
    line = {"rows": n_rows, "sampled": time.n_pairs, "start_s": time.start_cpu_s}
    line |= {"select_s": watch.cpu_s, "forecast_s": forecast}
    print(json.dumps(line | {"ratio": forecast / watch.cpu_s}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--select", type=int, default=0, metavar="N")
    flags = parser.parse_args()
    if flags.select:
        for n_rows in flags.rows:
            with tempfile.TemporaryDirectory() as root:
                sizes = (n_rows, _N_REFERENCES, flags.dim)
                select.in_process(select.write_tables, root, *sizes)
                select.in_process(compare_select, root, n_rows, flags.select)
        return
    per_pair = per_lot = 0.0
    for number, n_rows in enumerate(sorted(flags.rows)):
        with tempfile.TemporaryDirectory() as root:
            select.in_process(
                select.write_tables, root, n_rows, _N_REFERENCES, flags.dim
            )
            run = select.describe_run(root, n_rows)
            n_bytes, n_lots = measured_bytes(run), len(run.lots)
            if number == 0:
                per_lot = footprint.footer_bytes(run)
                per_pair = (n_bytes - per_lot * n_lots) / n_rows
            source = run.lots[0].source
            folders = [t(source).folder for t in (run.pairs, run.languages)]
            folders.append(run.embeddings(source).folder)
            names = {lot.name for lot in run.lots}
            found = [p for folder in folders for p in files.list_folder(folder)]
            n_files = sum(files.split(p)[1].partition(".")[0] in names for p in found)
        forecast = per_pair * n_rows + per_lot * n_lots
        line = {"rows": n_rows, "lots": n_lots, "bytes": n_bytes}
        line |= {"forecast_bytes": round(forecast), "ratio": forecast / n_bytes}
        # The tables that the benchmark writes have no index of ids.
        expected = (footprint.n_files(run) - 1) * n_lots
        print(json.dumps(line | {"files": n_files, "forecast_files": expected}))


if __name__ == "__main__":
    main()
