"""Recipes: Python files whose `get_config()` returns a `TrainConfig`.

In: nothing. Out: the configuration of a run; each file says which numbers are the
papers' and which are ours. Begin with `demo.py`, or with `tipsv2_b14.py`.
"""
