"""The check of `score`: the encoder can be read, if a shard still needs it."""

from pipeline.engine.run_folder import RunFolder


def check(run: RunFolder) -> None:
    """Raises ValueError if the encoder is still needed and cannot be read."""
    units = (*run.units, *run.evaluation_units, *run.seed_units)
    source_to_names = {
        source: run.embeddings(source).unit_names()
        for source in {unit.source for unit in units}
    }
    if all(unit.name in source_to_names[unit.source] for unit in units):
        return
    from pipeline.models import encoders  # JAX takes seconds

    encoders.check(run.config.encoder)
