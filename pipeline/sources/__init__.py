"""The inputs of a run: shards of image-text pairs, caption files, drop lists.

In: tars and Parquet files of many makers, under limits. Out: one `RawPair` per pair in
the order of its shard, with its error if it cannot be read; imported captions; the
entries of drop lists. Begin with `shards`.
"""
