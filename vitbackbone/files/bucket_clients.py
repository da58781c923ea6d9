"""Clients of buckets, with the credentials that each cloud's own tools use.

A client is shared by all threads of a process. It does not survive a fork: its threads stay with the parent, and a
request of the child would wait forever. So a forked child gets an error instead.
"""

import errno
import os
import shutil
from collections.abc import Callable
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from vitbackbone.files.libraries import is_installed

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

# obstore repeats a request within these limits, a part of a minute each; `object_storage` repeats what still fails.
RETRIES: "RetryConfig" = {
    "max_retries": 6,
    "retry_timeout": timedelta(seconds=60),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=5), "base": 2},
}
# A connection that stalls is given up. The whole request has more time, because a slow network is not a fault.
TIMES: "ClientConfig" = {"connect_timeout": "10s", "read_timeout": "30s", "timeout": "10min"}

# What to set, for the error of a service that denies access.
CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE with boto3 installed; for a public bucket "
    "set AWS_SKIP_SIGNATURE=true",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS to the file of a service account, or run `gcloud auth "
    "application-default login`; for a public bucket set GOOGLE_SKIP_SIGNATURE=true",
    "az": "set AZURE_STORAGE_ACCOUNT and AZURE_STORAGE_KEY, or AZURE_STORAGE_CONNECTION_STRING, or run `az login`; "
    "for a public container set AZURE_SKIP_SIGNATURE=true",
}

_process = [0]  # the process that has opened a client


def client_of(bucket: str) -> "ObjectStore":
    """Return the client of a bucket such as `s3://photos`.

    Raises `ImportError` without obstore, `ValueError` for a wrong name or setting, and `PermissionError` if boto3 finds
    no credentials. Raises `RuntimeError` in a process that was forked after its parent had opened a client.
    """
    if _process[0] not in (0, os.getpid()):
        raise RuntimeError(
            f"this process was forked from one that has opened a bucket, so that it cannot read {bucket}; start it by "
            "the method 'spawn' or 'forkserver'"
        )
    if not is_installed("obstore"):
        raise ImportError(f"to read {bucket}, install the extra: pip install 'vitbackbone[cloud]'")
    _process[0] = os.getpid()
    return _client(bucket)


@lru_cache(256)
def _client(bucket: str) -> "ObjectStore":
    scheme, _, name = bucket.partition("://")
    return _CLIENTS[scheme](name)


def has_clients() -> bool:
    """Tell whether this process has opened a bucket, so that processes that it forks cannot."""
    return _process[0] != 0


def _s3(name: str) -> "ObjectStore":
    from obstore.store import S3Store

    settings: dict[str, Any] = {}
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if is_installed("boto3") and not _is_set("AWS_SKIP_SIGNATURE"):
        import botocore.session
        from obstore.auth.boto3 import Boto3CredentialProvider

        session = botocore.session.get_session()  # reads the environment and the profile of ~/.aws
        settings["region"] = session.get_config_variable("region")
        endpoint = endpoint or session.get_scoped_config().get("endpoint_url")
        if session.get_credentials() is None:  # boto3 has looked everywhere, the machine's role included
            raise PermissionError(errno.EACCES, f"no credentials were found; {CREDENTIALS['s3']}", f"s3://{name}")
        settings["credential_provider"] = Boto3CredentialProvider(session)
    settings["endpoint"] = endpoint
    return S3Store(name, **_common(endpoint), **{key: value for key, value in settings.items() if value})


def _gs(name: str) -> "ObjectStore":
    from obstore.store import GCSStore

    return GCSStore(name, **_common(os.environ.get("GOOGLE_BASE_URL")))


def _az(name: str) -> "ObjectStore":
    from obstore.store import AzureStore

    environment = os.environ
    given = dict(
        part.split("=", 1) for part in environment.get("AZURE_STORAGE_CONNECTION_STRING", "").split(";") if "=" in part
    )
    settings: dict[str, Any] = {
        "account_name": given.get("AccountName") or environment.get("AZURE_STORAGE_ACCOUNT"),
        "account_key": given.get("AccountKey") or environment.get("AZURE_STORAGE_KEY"),
        "sas_key": given.get("SharedAccessSignature"),
        "endpoint": given.get("BlobEndpoint"),
    }
    known = ("KEY", "TOKEN", "SECRET", "FEDERATED", "EMULATOR", "SIGNATURE", "IDENTITY", "MSI")
    has_login = any(name.startswith("AZURE_") and any(word in name for word in known) for name in environment)
    if not given and not has_login and shutil.which("az"):
        settings["use_azure_cli"] = True
    endpoint = given.get("BlobEndpoint") or environment.get("AZURE_STORAGE_ENDPOINT")
    if _is_set("AZURE_STORAGE_USE_EMULATOR"):
        endpoint = environment.get("AZURITE_BLOB_STORAGE_URL", "http://127.0.0.1:10000")
    return AzureStore(name, **_common(endpoint), **{key: value for key, value in settings.items() if value})


def _common(endpoint: str | None) -> dict[str, Any]:
    plain = bool(endpoint and endpoint.lower().startswith("http://"))
    return {"client_options": {**TIMES, "allow_http": plain}, "retry_config": RETRIES}


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes")


_CLIENTS: dict[str, "Callable[[str], ObjectStore]"] = {"s3": _s3, "gs": _gs, "az": _az}
