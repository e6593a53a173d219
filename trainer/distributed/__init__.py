"""Several devices and several processes as one run.

In: the devices that JAX sees. Out: a mesh of them, and the sharding of a batch and of
a training state over it. Begin with `sharding.py`.
"""
