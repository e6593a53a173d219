"""The one decoder: encoded images to upright sRGB pixels, under limits.

In: the bytes of a JPEG, PNG, WebP, BMP, GIF or TIFF file. Out: uint8 `[h, w, 3]`, or an
`ImageError` of one line. The trainer uses it too, so it needs no Beam and no JAX.
Begin with `decoder`.
"""
