"""Pictures of what an encoder sees: features, classes, neighbors, attention.

In: an evaluation and its samples. Out: sheets of pictures, and one page that shows
them. Begin with `views.py`.
"""
