"""Stage 4, export: training shards of the kept images with their captions.

In: the decisions, the captions and the images of the kept pairs. Out: shards of
`records.Sample` (TFRecord or WebDataset), an index for each, and a manifest.

Begin with `stage.py`, which has the graph. `samples.py` joins the tables of a lot to
samples, `lot_shards.py` divides them into shards, `shard_writer.py` writes one with its
images, `shard_formats.py` lists the formats. A lot that is done has a receipt
(`receipts.py`); `publishing.py` makes the manifest of all receipts (`manifest.py`), and
`completeness.py` says which lots are to be done.
"""
