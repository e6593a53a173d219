"""Models in the forms of other programs: Hugging Face, Scenic and PyTorch, both ways.

In: parameters of a trained model, or files of such a form. Out: a folder that these
programs load, with a tokenizer and a model card, or `ExportedWeights`. Begin with
`formats.py`.
"""
