"""Evaluations of frozen encoders: an evaluation set in, nested numbers out.

In: an encoder with its parameters, and the place of a data set. Out: shares in [0, 1],
errors in meters or degrees.

Begin with `run.py`, then read a task in `image_tasks.py`. `sets/` reads data, `scores/`
holds pure measures, `decoding/` trains probes and DPT heads on frozen features.
"""
