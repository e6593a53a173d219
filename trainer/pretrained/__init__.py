"""Trained models found again: to evaluate them, to export them, or to start from them.

In: a workdir, one of its checkpoints, or an export. Out: a `TrainedModel`, and the
`StartingPoint` of a new run. Begin with `trained_model.py`.
"""
