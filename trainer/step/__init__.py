"""The train step: state and batch in, next state and metrics out.

Begin with `train_step.py`. It takes the gradient of `objective.py`, whose terms are the
files of `terms`, with the functions of `losses.py` and `prototype_loss.py`;
`teacher.py` has the teacher and `optimizer.py` the update.
"""
