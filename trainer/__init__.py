"""The trainer: training shards in, an image encoder and a text encoder out.

In: `RUN/tfrecords` as the pipeline exports them, a recipe, and a tokenizer that
`trainer.tokenizer` trains on the same texts. Out: a workdir with checkpoints and
metrics, evaluations, exports for other programs, and pages with pictures.

Begin with `trainer/train.py`, which is the method: batch, step, evaluate, save.
"""
