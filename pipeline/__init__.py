"""The pipeline: web image-text pairs in, captioned training shards out.

In: tars or Parquet files of pairs, sets of evaluation and seed images, a recipe. Out: a
run folder with scores, decisions, captions, training shards and a report.

Begin with `pipeline/curate.py`, which is the method: score, select, caption, export.
"""
