"""How is a stranger let read one object of a bucket for a while? By an address that its owner has signed."""

import os
from typing import Any
from urllib.parse import urlsplit

from botocore.config import Config
from botocore.exceptions import BotoCoreError
from botocore.session import Session

from service.blobs.store import Method
from service.errors import NotReady

_CALLS: dict[Method, str] = {"GET": "get_object", "HEAD": "head_object"}  # a signature holds for one method only
# Files of a home directory may name other credentials and another server than the bytes went to: obstore reads none.
_NO_FILES = {
    "profile": (None, None, None, None),  # where set, from where in the environment, else, converted how
    "config_file": (None, None, os.devnull, None),
    "credentials_file": (None, None, os.devnull, None),
}


class BucketLinks:
    """Signs addresses of objects in a bucket of S3 or kin (Signature Version 4, in the query).

    obstore signs too, but only the bare address; an answer's type and file name are part of what is signed, and nobody
    can add them later. Credentials are those of the environment, or of the instance: obstore's, for both must be the
    same.
    """

    def __init__(self, url: str, *, endpoint: str | None, region: str) -> None:
        """
        Args:
            url: s3://bucket/prefix
        """
        parts = urlsplit(url)
        self._bucket = parts.netloc
        self._prefix = parts.path.strip("/")
        session = Session(session_vars=_NO_FILES)
        session.get_component("credential_provider").remove("boto-config")  # a file too, of a library's ancestor
        self._client: Any = session.create_client(
            "s3",
            region_name=region,
            endpoint_url=endpoint,
            # By its path, as obstore addresses a bucket: the one form that every kin of S3 knows.
            config=Config(signature_version="s3v4", s3={"addressing_style": "path"}),
        )

    def sign(self, key: str, *, method: Method, ttl_s: int, content_type: str, disposition: str) -> str:
        """The address of an object, for so many seconds, or for as long as temporary credentials last.

        Raises:
            NotReady: there are no credentials to sign with.
        """
        asked = {
            "Bucket": self._bucket,
            "Key": f"{self._prefix}/{key}" if self._prefix else key,
            "ResponseContentType": content_type,
            "ResponseContentDisposition": disposition,
        }
        try:
            url: str = self._client.generate_presigned_url(_CALLS[method], Params=asked, ExpiresIn=ttl_s)
        except BotoCoreError as err:
            raise NotReady(f"the result's address cannot be signed ({type(err).__name__})") from None
        return url
