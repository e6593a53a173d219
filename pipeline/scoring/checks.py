"""The check of `score`: the encoder can be read, if a shard still needs it."""

from pipeline.engine.run_folder import RunFolder


def check(run: RunFolder) -> None:
    """Raises ValueError if the encoder is still needed and cannot be read."""
    lots = (*run.lots, *run.evaluation_lots, *run.seed_lots)
    source_to_names = {
        source: run.embeddings(source).lot_names(known=[lot.name for lot in lots])
        for source in {lot.source for lot in lots}
    }
    if all(lot.name in source_to_names[lot.source] for lot in lots):
        return
    from pipeline.models import encoders  # JAX takes seconds

    encoders.check(run.config.encoder)
