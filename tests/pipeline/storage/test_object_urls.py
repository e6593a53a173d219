import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.storage import files, object_urls


@pytest.mark.parametrize(
    ("url", "bucket", "key"),
    [
        ("s3://b/a/c", ("s3", "b"), "a/c"),
        ("S3A://b/a/", ("s3", "b"), "a"),
        ("gcs://b", ("gs", "b"), ""),
        ("az://c/x y#%+", ("az", "c"), "x y#%+"),
        ("abfss://c@a.dfs.core.windows.net/x", ("az", "c@a.dfs.core.windows.net"), "x"),
    ],
)
def test_a_url_has_a_store_a_bucket_and_a_key(url, bucket, key):
    found, found_key = object_urls.parse(url)
    assert (found.scheme, found.name) == bucket
    assert found_key == key


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://", "expected s3://BUCKET/KEY"),
        ("gs:///a", "expected gs://BUCKET/KEY"),
        ("bucket/key", "expected SCHEME://BUCKET/KEY"),
    ],
)
def test_a_bucket_is_needed(url, expected):
    with pytest.raises(ValueError, match=f"{url}: {expected}"):
        object_urls.parse(url)


@pytest.mark.parametrize("key", ["a//b", "/a", "a/../b", "./a"])
def test_a_key_that_stores_read_in_two_ways_is_refused(key):
    message = "expected no `//`, `.` or `..` inside the key"
    with pytest.raises(ValueError, match=message):
        object_urls.parse(f"s3://bucket/{key}")


def test_another_version_of_the_s3_api_is_refused():
    files.use_options(PipelineOptions(["--s3_api_version=2001-01-01"]))
    try:
        with pytest.raises(ValueError, match="--s3_api_version=2001-01-01: expected"):
            files.is_file("s3://bucket/a")
    finally:
        files.use_options(PipelineOptions([]))
