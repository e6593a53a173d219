"""What surrounds the train step: checkpoints, metrics, profiles, orderly stops.

In: the state and the metrics of each step. Out: the workdir: `config.json`,
`metrics.jsonl`, TensorBoard events, `checkpoints/`. Begin with `workdir.py`, which
says what a workdir is, and `checkpoints.py`.
"""
