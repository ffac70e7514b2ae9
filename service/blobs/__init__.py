"""Where do the bytes live? Uploads and results are blobs, named by the SHA-256 of what is in them."""

from service.blobs.files import FileStore
from service.blobs.opening import UnusableBlobUrl, open_store
from service.blobs.store import NAME_PATTERN, Blob, BlobStore, Method

__all__ = ["NAME_PATTERN", "Blob", "BlobStore", "FileStore", "Method", "UnusableBlobUrl", "open_store"]
