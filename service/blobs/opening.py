"""Where are this installation's blobs? In its data directory, or where `blob_url` says."""

import os
import re
from datetime import timedelta
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, unquote, urlsplit

from models.errors import NeedsExtra, QuietframeError
from service.blobs.copies import LocalCopies
from service.blobs.files import FileStore
from service.blobs.store import BlobStore
from service.settings import Settings

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig, S3Config

    from service.blobs.links import BucketLinks

_FORMS = "file:///directory, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix"
_BUCKET = re.compile(r"\$?[A-Za-z0-9][A-Za-z0-9._-]{0,254}")  # of whatever kind: $web is a container of Azure's
_HOST = re.compile(r"[A-Za-z0-9._-]+|[0-9a-f:.]+")  # a name, or an address of either kind
_REGION = "us-east-1"  # what S3's kin take for granted where nobody names one


class UnusableBlobUrl(QuietframeError):
    """The settings name no store that can be opened. The message does not repeat the URL: it may hold a password."""


def open_store(settings: Settings) -> BlobStore:
    """The store that the settings name; nothing is asked of it yet.

    Raises:
        NeedsExtra: it is one in a bucket, and what speaks to buckets is not installed.
        UnusableBlobUrl: no store goes by this URL, or it holds credentials, or it would be spoken to in the clear.
    """
    if settings.blob_url is None:
        return FileStore(settings.data_dir / "blobs")
    url = _split(settings.blob_url, f"QUIETFRAME_BLOB_URL cannot be read; it is {_FORMS}")
    if url.username or url.password or url.query or url.fragment:
        raise UnusableBlobUrl(
            "QUIETFRAME_BLOB_URL has a user, password, query or fragment; it is a place only, and credentials come "
            "from the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, for one) or the instance"
        )
    if url.scheme == "file" and not url.netloc and url.path.strip("/"):
        return FileStore(Path(unquote(url.path)))
    if url.scheme not in ("s3", "gs", "az") or not url.netloc:
        raise UnusableBlobUrl(f"QUIETFRAME_BLOB_URL names no store; it is {_FORMS}")
    if not _BUCKET.fullmatch(url.netloc):
        raise UnusableBlobUrl(
            f"QUIETFRAME_BLOB_URL names no bucket after {url.scheme}://; its name is of letters, digits, '.', '_', '-'"
        )
    prefix = url.path.strip("/")
    if prefix and any(part in ("", ".", "..") for part in prefix.split("/")):
        raise UnusableBlobUrl("QUIETFRAME_BLOB_URL has an empty part, '.' or '..' in its prefix; keys are no paths")
    return _open_bucket(settings, settings.blob_url, url.scheme)


def _open_bucket(settings: Settings, url: str, scheme: str) -> BlobStore:
    wanted = ["obstore", "botocore"] if settings.result_redirect and scheme == "s3" else ["obstore"]
    for name in wanted:
        if find_spec(name) is None:
            raise NeedsExtra(f"{name} is not installed; it comes with: pip install 'quietframe[s3]'")
    from obstore.exceptions import BaseError
    from obstore.store import AzureStore, GCSStore, S3Store

    from service.blobs.objects import BucketStore

    # A request is given up after this long; 4 parts of 8 MiB go up at once, so 6 Mbit/s will do.
    client: ClientConfig = {
        "allow_http": settings.blob_allow_http,
        "connect_timeout": timedelta(seconds=5),
        "timeout": timedelta(seconds=45),
    }
    retry: RetryConfig = {
        "max_retries": 10,
        "retry_timeout": timedelta(seconds=settings.blob_patience_s),
        "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=5), "base": 2},
    }
    copies = LocalCopies(settings.data_dir / "blob-copies", settings.blob_cache_bytes)
    if scheme != "s3":
        try:
            kind = GCSStore if scheme == "gs" else AzureStore
            return BucketStore(kind.from_url(url, client_options=client, retry_config=retry), copies)
        except (BaseError, ValueError) as err:
            raise UnusableBlobUrl(
                f"the environment lacks something for {scheme}:// ({type(err).__name__}): the account's name in "
                "AZURE_STORAGE_ACCOUNT_NAME, or the credentials' file in GOOGLE_APPLICATION_CREDENTIALS"
            ) from None
    endpoint = _endpoint(settings)
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or _REGION
    config: S3Config = {"region": region, "virtual_hosted_style_request": False}
    if endpoint:
        config |= {"endpoint": endpoint, "aws_endpoint_url_s3": endpoint}  # or the variable would go before the setting

    @cache
    def links() -> "BucketLinks":
        from service.blobs.links import BucketLinks

        return BucketLinks(url, endpoint=endpoint, region=region)

    place = urlsplit(url)
    try:
        # Not `from_url`, which (in 0.12) knows fewer of the settings.
        bucket = S3Store(
            place.netloc,
            prefix=place.path.strip("/") or None,
            config=config,
            client_options=client,
            retry_config=retry,
        )
    except (BaseError, ValueError) as err:
        # Its words repeat what it was given, which may be anything.
        raise UnusableBlobUrl(
            f"the bucket of QUIETFRAME_BLOB_URL cannot be opened ({type(err).__name__}): its prefix, the endpoint or a "
            "variable of the environment that begins with AWS_ cannot be read"
        ) from None
    return BucketStore(bucket, copies, links=links if settings.result_redirect else None)


def _endpoint(settings: Settings) -> str | None:
    """Whom to speak to instead of Amazon."""
    named = (settings.blob_endpoint, *map(os.environ.get, ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")))
    endpoint = next(filter(None, named), None)
    if endpoint is None:
        return None
    refusal = "the blob store's endpoint is no plain http:// or https:// address"
    url = _split(endpoint, refusal)
    is_plain = not (url.username or url.password or url.query or url.fragment)
    if url.scheme not in ("http", "https") or not is_plain or not _HOST.fullmatch(url.hostname or ""):
        raise UnusableBlobUrl(refusal)
    if url.scheme == "http" and not settings.blob_allow_http:
        raise UnusableBlobUrl(
            f"the blob store's endpoint on {url.hostname} is plain http, so blobs would pass in the clear; "
            "QUIETFRAME_BLOB_ALLOW_HTTP=true allows it"
        )
    return endpoint.rstrip("/")


def _split(text: str, refusal: str) -> SplitResult:
    """The parts of a URL; one whose parts cannot be told is refused, unrepeated."""
    try:
        url = urlsplit(text)
        _ = url.port  # read when it is asked for
    except ValueError:
        raise UnusableBlobUrl(refusal) from None
    return url
