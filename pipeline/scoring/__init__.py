"""Stage 1, score: everything measured on each input pair, once.

In: lots of source shards. Out: one table per lot and measure: pairs,
languages, embeddings with alignment scores, vectors of descriptors.
Begin with `stage`.
"""
