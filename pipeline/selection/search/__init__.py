"""Search: the nearest reference image of many images.

In: stored embeddings of the pool and of evaluation or seed sets. Out: cosines and names
of the nearest images, the same on every worker and in every order of work.

Begin with `reference_sets.py`, which workers call. `index_builder.py` makes the
indexes, `exact_search.py` compares exactly, `inverted_lists.py` and `kmeans.py` divide
what is too large to compare.
"""
