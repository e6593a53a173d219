"""The encoders and heads, as Flax modules with the names of the released checkpoints.

In: images, or token ids. Out: CLS tokens and patches, one vector per text, prototype
vectors, dense maps. Begin with `two_tower.py`, which puts them together.
"""
