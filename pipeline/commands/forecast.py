"""The command `forecast`: what a whole run will keep and cost, from a sample of it."""

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
from pipeline.storage import files


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
        figures = forecast.measure_sample(sample)
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
    for stage, work in (("score", curate.score), ("select", curate.select_sample)):
        with (
            progress.watch(run_root, stage, stage_progress.work_of(stage, sample, ())),
            forecast_costs.Stopwatch() as watch,
        ):
            counters = work(sample, options)
        n_pairs = stage_progress.n_pairs_of(stage, counters)
        if stage_runner.is_local(options) and n_pairs:
            start_s = _model_start_cpu_s(sample) if stage == "score" else 0.0
            stage_to_time |= watch.stage_time(stage, n_pairs, sample, start_s)
    return stage_to_time


def _model_start_cpu_s(sample: RunFolder) -> float:
    """What each worker of `score` takes before its first pair, measured once more."""
    with forecast_costs.Stopwatch() as watch:
        scoring.start_model(sample.config.encoder)
    return watch.cpu_s
