"""Training shards in, batches of crops, masks and token ids out.

In: `RUN/tfrecords` on a disk or in an object store. Out: an endless stream of batches,
the same for any number of workers, processes and restarts.

Begin with `batches.py`, which has the whole way of a sample.
"""
