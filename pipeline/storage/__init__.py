"""Files on any file system, tables of rows, retries and read-ahead.

In: paths and patterns, local or with a scheme such as s3://. Out: bytes, listings and
Parquet tables that are complete or absent. Local paths are plain files; S3, Cloud
Storage and Azure are read by obstore, with one client per process and bucket; what only
Beam knows, by Beam. The trainer reads its shards through here, too.
Begin with `files`, then `object_store` and `tables`.
"""
