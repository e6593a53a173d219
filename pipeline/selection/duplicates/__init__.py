"""Duplicates: exact ones, near-duplicates in the pool and of evaluation images.

In: decisions on pairs, with the hashes and the embeddings of their images. Out: the
decisions, with all duplicates dropped but one.

Begin with `exact.py` (equal bytes), then `evaluation.py` (near an evaluation image) and
`pool.py` (near another image of the pool). For the latter, `cell_entries` brings images
together in cells (`kmeans_cells`, `cell_splits`), `components` compares them there, and
`component_roots` merges the components of all cells.
`audit.py` measures on `synthetic_copies` what a recipe's bounds would find.
"""
