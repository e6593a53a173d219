"""The flags of stores, such as `--s3_endpoint_url`, in the launcher and its workers."""

import json
import os
import sys
import typing
from collections.abc import Mapping

if typing.TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

_NAMES = (
    *("s3_access_key_id", "s3_secret_access_key", "s3_session_token"),
    *("s3_endpoint_url", "s3_region_name", "s3_api_version", "s3_verify"),
    *("s3_disable_ssl", "no_auth", "impersonate_service_account"),
    *("azure_connection_string", "blob_service_endpoint"),
    "azure_managed_identity_client_id",
)
_VARIABLE = "TIPS_CURATION_STORE_FLAGS"  # for workers that are children of the launcher


def use(options: "PipelineOptions") -> None:
    """Passes Beam's flags of stores on to this process and its children."""
    from apache_beam.io.filesystems import FileSystems

    FileSystems.set_options(options)
    given = options.get_all_options(drop_default=True)
    os.environ[_VARIABLE] = json.dumps({n: given[n] for n in _NAMES if n in given})


def flag(name: str) -> typing.Any:
    """The value of a flag, None if it was not given.

    Workers on other machines have them from Beam, which sets the options of its file
    systems there.
    """
    if _VARIABLE in os.environ:
        return json.loads(os.environ[_VARIABLE]).get(name)
    return _beam_options().get(name)


def _beam_options() -> Mapping[str, typing.Any]:
    if "apache_beam.io.filesystems" not in sys.modules:
        return {}
    options = sys.modules["apache_beam.io.filesystems"].FileSystems._pipeline_options
    return options.get_all_options(drop_default=True) if options else {}
