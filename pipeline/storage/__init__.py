"""Files on any file system, tables of rows, time limits, retries and read-ahead.

In: paths and patterns, local or with a scheme such as gs://. Out: bytes, listings and
Parquet tables that are complete or absent. Local paths need no Beam.
Begin with `files`, then `tables`.
"""
