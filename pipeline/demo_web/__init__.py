"""The demo's web: drawn scenes with planted defects, whose truth is known exactly.

In: a number of pairs and a seed. Out: tars as a crawler writes them, evaluation images
and seeds with masks, and the truth about each pair. Begin with `crawl`, then `scene`.
"""
