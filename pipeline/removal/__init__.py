"""Takes pairs, shards and sources out of a run: their rows, captions and images.

In: a record of what is removed. Out: successors of the lots concerned, without it, and
a run folder in which nothing of it is left. Begin with `stage`.
"""
