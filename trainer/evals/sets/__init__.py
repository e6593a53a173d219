"""Evaluation sets in the forms in which people keep them.

In: a folder, tars, Parquet files or `tfds:NAME`. Out: samples with their truths, which
split each belongs to, and an account of everything that was left out. Begin with
`readers.py`.
"""
