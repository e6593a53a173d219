"""Stage 4, export: training shards of the kept images with their captions.

In: the decisions, the captions and the images of the kept pairs. Out: shards of
`records.Sample` (TFRecord or WebDataset), an index for each, and a manifest.

Begin with `stage.py`, which plans and writes the shards. `samples.py` joins the tables
of a pair to a sample, `shard_formats.py` lists the writers, `manifest.py` says what was
written.
"""
