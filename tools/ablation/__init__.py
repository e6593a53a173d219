"""An ablation of the trainer and the curation on drawn scenes, small enough for a CPU.

In: nothing but seeds. Out: one JSON file of figures per arm and seed, a table and a
plot. Begin with `arms.py`: the arms, and the effects that are expected of them.
"""
