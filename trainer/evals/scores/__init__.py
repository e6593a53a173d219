"""Measures of features and of predicted maps: pure functions.

In: NumPy arrays of features, labels or maps. Out: numbers. Nothing here knows a model
or a data set. Begin with `features.py` and `knn.py`.
"""
