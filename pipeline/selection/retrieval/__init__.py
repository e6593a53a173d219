"""Retrieval: keeps the images of the pool that resemble curated seeds.

In: decisions on pairs and the indexes of the seed sets. Out: the decisions, each with
the seed sets that it is a hit of; images that are a hit of none are dropped.

Begin with `keep_curated.py`, which chooses between the three modes of a recipe: a bound
on the similarity, the k nearest images of each seed, or samples of the clusters in
which seeds lie. `top_k.py` ranks candidates over all shards.
"""
