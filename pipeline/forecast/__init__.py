"""What a run will keep and cost, estimated from a sample of its shards.

In: a run folder in which some shards of each source are scored and decided, and prices.
Out: estimates with 95 % intervals, as text and as `RUN/forecast.json`. Begin with
`from_sample.py`; `extrapolation.py` is about larger crawls.
"""
