"""The command `forecast`: what a whole run will keep and cost, from a sample of it."""

import dataclasses

from apache_beam.options.pipeline_options import PipelineOptions

from pipeline import curate
from pipeline.commands import stage_progress
from pipeline.engine import progress, stage_runner
from pipeline.engine.run_folder import RunFolder
from pipeline.forecast import costs as forecast_costs
from pipeline.forecast import extrapolation
from pipeline.forecast import from_sample as forecast
from pipeline.forecast import text as forecast_text
from pipeline.scoring import footprint as scoring
from pipeline.selection import ledger
from pipeline.storage import files

_LEAST_SHARE = 0.2  # of the seconds of a job over one shard


def print_forecast(
    run: RunFolder,
    sample: RunFolder,
    options: PipelineOptions,
    prices: forecast_costs.Prices,
) -> None:
    """Tells what a sample says of the whole run, and writes `RUN/forecast.json`.

    Scores and selects the sample where it is not.
    """
    path = files.join(run.root, "forecast.json")
    stage_to_time = forecast_costs.read_times(path, sample)
    stage_to_time |= _timed_stages(run.root, sample, options)
    with forecast_costs.Stopwatch() as watch:
        figures = forecast.measure_sample(run, sample)
    stage_to_time |= watch.stage_time("export", figures.n_records, sample)
    found = forecast.make_forecast(run, sample, figures)
    costs = forecast_costs.compute_costs(found, stage_to_time, prices)
    per_pair = extrapolation.PairCosts.from_sample(sample, found, stage_to_time)
    rows = [
        extrapolation.scale_row(per_pair, n_pairs) for n_pairs in extrapolation.N_PAIRS
    ]
    files.write(path, forecast_text.to_json(found, stage_to_time, costs, rows))
    print(forecast_text.to_text(found, stage_to_time, costs, rows))


def _timed_stages(
    run_root: str, sample: RunFolder, options: PipelineOptions
) -> dict[str, forecast_costs.StageTime]:
    """Runs what the sample lacks; gives the times of stages that had work to do."""
    stage_to_time: dict[str, forecast_costs.StageTime] = {}
    for stage, work in (("score", time_score), ("select", time_select)):
        to_do = stage_progress.work_of(stage, sample, ())
        with progress.watch(run_root, stage, to_do):
            stage_to_time |= work(sample, options)
    return stage_to_time if stage_runner.is_local(options) else {}


def time_score(
    sample: RunFolder, options: PipelineOptions
) -> dict[str, forecast_costs.StageTime]:
    """Scores what the sample lacks; gives the time, or {} if it lacked nothing."""
    with forecast_costs.Stopwatch() as watch:
        counters = curate.score(sample, options)
    n_pairs = stage_progress.n_pairs_of("score", counters)
    is_timed = n_pairs and stage_runner.is_local(options)
    start_s = _model_start_cpu_s(sample) if is_timed else 0.0
    return watch.stage_time("score", n_pairs, sample, start_s)


def time_select(
    sample: RunFolder, options: PipelineOptions
) -> dict[str, forecast_costs.StageTime]:
    """Selects from the sample, as `time_score` scores it.

    Jobs over its first shard alone, before and behind it, tell the start of a job from
    the time of pairs. The one before keeps similarities, which the one behind lacks.
    """
    if ledger.is_complete(sample):
        return {}
    first = dataclasses.replace(sample, lots=sample.lots[:1])
    is_timed = len(sample.lots) > 1 and stage_runner.is_local(options)
    if is_timed:
        _select_anew(first, options)
    with forecast_costs.Stopwatch() as watch:
        counters = curate.select_sample(sample, options)
    n_pairs = stage_progress.n_pairs_of("select", counters)
    start_s = 0.0
    if is_timed:
        with forecast_costs.Stopwatch() as watch_of_first:
            n_first = _select_anew(first, options)
        others_s = watch.cpu_s - watch_of_first.cpu_s
        # Else the start is not known: equal jobs differ by as much.
        if n_pairs > n_first and others_s > _LEAST_SHARE * watch_of_first.cpu_s:
            work_s = others_s / (n_pairs - n_first) * n_pairs
            start_s = max(watch.cpu_s - work_s, 0.0)
    return watch.stage_time("select", n_pairs, sample, start_s)


def _select_anew(sample: RunFolder, options: PipelineOptions) -> int:
    """Selects from a sample and deletes the decisions; gives the number of pairs."""
    counters = curate.select_sample(sample, options)
    files.delete_folder(*files.split(sample.decisions.folder))
    return stage_progress.n_pairs_of("select", counters)


def _model_start_cpu_s(sample: RunFolder) -> float:
    """What each worker of `score` takes before its first pair, measured once more."""
    with forecast_costs.Stopwatch() as watch:
        scoring.start_model(sample.config.encoder)
    return watch.cpu_s
