"""``S3Store``: releases in Amazon S3, or in what speaks its protocol. It needs boto3, of the extra ``s3``.

Keys, region and endpoint come from where all of AWS's tools find them: the environment, ``~/.aws``, or the machine's
own role.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from onetrunk.protocol.errors import OneTrunkError, UserError
from onetrunk.releases.store import BLOCK_BYTES, MAX_FILE_BYTES, ChangedMeanwhileError, Store, StoreUrl

# Some thousand releases. A store that lists names for ever must not fill the memory.
_MOST_NAMES = 1_000_000
# What S3 removes in one request.
_MOST_REMOVED = 1000
_MISSING = ("404", "NoSuchKey")
# A conditional write that lost: the object is there, is another one, or another write of it is under way.
_LOST = ("PreconditionFailed", "ConditionalRequestConflict", "412", "409")


class S3Store(Store):
    """A store in a bucket."""

    def __init__(self, url: StoreUrl) -> None:
        """Prepare the client; connect to nothing.

        Args:
            url: The bucket and the prefix.

        Raises:
            UserError: boto3 is not installed, or its configuration cannot be used.
        """
        super().__init__(url)
        try:
            import boto3
            from botocore.config import Config
        except ImportError:
            raise UserError(f"{url}: object stores need the package boto3: pip install 'onetrunk[s3]'") from None
        config = Config(connect_timeout=10, read_timeout=60, retries={"mode": "standard", "max_attempts": 4})
        try:
            with self._told("the client"):
                self._client: Any = boto3.session.Session().client("s3", config=config)
        except ValueError as error:  # of an endpoint that is no address
            raise UserError(f"{url}: {error}: set AWS_ENDPOINT_URL to an address such as http://HOST:PORT") from None

    def read(self, name: str, max_bytes: int) -> tuple[bytes, str] | None:
        """See `Store.read`."""
        with self._told(name):
            found = self._get(name, max_bytes)
            return (found["Body"].read(max_bytes), found["ETag"]) if found else None

    def written(self, folder: str) -> dict[str, float]:
        """See `Store.written`."""
        prefix, found = f"{self._key(folder)}/", dict[str, float]()
        with self._told(folder):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.url.bucket, Prefix=prefix)
            for page in pages:
                found |= {
                    one["Key"].removeprefix(prefix): one["LastModified"].timestamp()
                    for one in page.get("Contents", ())
                    if one["Key"].startswith(prefix)
                }
                if len(found) > _MOST_NAMES:
                    raise UserError(
                        f"{self.url}/{folder}: found more than {_MOST_NAMES:,} objects: is it the right store? "
                        "prune-releases removes old releases"
                    )
        return found

    def holds(self, name: str, sha256: str) -> bool:
        """See `Store.holds`."""
        with self._told(name):
            try:
                found = self._client.head_object(**self._at(name), ChecksumMode="ENABLED")
            except self._client.exceptions.ClientError as error:
                if _code(error) in _MISSING:
                    return False
                raise
        return bool(found.get("ChecksumSHA256") == _base64(sha256))

    def download(self, name: str, path: Path, max_bytes: int = MAX_FILE_BYTES) -> bool:
        """See `Store.download`."""
        with self._told(name):
            found = self._get(name, max_bytes)
            if found is None:
                return False
            with path.open("wb") as target:
                for block in found["Body"].iter_chunks(BLOCK_BYTES):
                    self.check_wanted()
                    target.write(block)
        return True

    def upload(self, path: Path, name: str, sha256: str) -> None:
        """See `Store.upload`."""
        with self._told(name), path.open("rb") as stream:
            self._client.put_object(
                **self._at(name), Body=stream, ChecksumAlgorithm="SHA256", ChecksumSHA256=_base64(sha256)
            )

    def copy(self, source: str, name: str) -> None:
        """See `Store.copy`."""
        with self._told(name):
            self._client.copy_object(**self._at(name), CopySource=self._at(source), ChecksumAlgorithm="SHA256")

    def remove(self, names: Iterable[str]) -> None:
        """See `Store.remove`."""
        left = list(names)
        while left:
            now, left = left[:_MOST_REMOVED], left[_MOST_REMOVED:]
            keys = [{"Key": self._key(name)} for name in now]
            with self._told(now[0]):
                done = self._client.delete_objects(Bucket=self.url.bucket, Delete={"Objects": keys, "Quiet": True})
            for error in done.get("Errors", ()):
                raise OneTrunkError(
                    f"{self.url}: {error.get('Key', now[0])}: the store refuses: {error.get('Code')} "
                    f"{error.get('Message') or '':.200}"
                )

    def replace(self, name: str, content: bytes, tag: str | None) -> None:
        """See `Store.replace`."""
        condition = {"IfNoneMatch": "*"} if tag is None else {"IfMatch": tag}
        with self._told(name):
            try:
                self._client.put_object(**self._at(name), Body=content, **condition)
            except self._client.exceptions.ClientError as error:
                if _code(error) in _LOST:
                    raise ChangedMeanwhileError(f"{self.url}: {name} was written by somebody else meanwhile") from None
                raise

    def _get(self, name: str, max_bytes: int) -> Any:
        """Return the response with an object's body, or None if there is no such object."""
        try:
            found = self._client.get_object(**self._at(name))
        except self._client.exceptions.NoSuchKey:
            return None
        size = found.get("ContentLength")
        if size is None or size > max_bytes:
            found["Body"].close()
            size = "a body of unknown size" if size is None else f"{size:,} bytes"
            raise UserError(f"{self.url}/{name}: found {size}, allowed are {max_bytes:,}: is it the right store?")
        return found

    def _at(self, name: str) -> dict[str, str]:
        return {"Bucket": self.url.bucket, "Key": self._key(name)}

    def _key(self, name: str) -> str:
        return f"{self.url.prefix}/{name}"

    @contextmanager
    def _told(self, name: str) -> Iterator[None]:
        """Turn the client's errors into one line. None of them repeats a secret."""
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

        try:
            yield
        except NoCredentialsError:
            raise UserError(
                f"{self.url}: found no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile in "
                "~/.aws"
            ) from None
        except ClientError as error:
            message = error.response.get("Error", {}).get("Message", "")
            raise OneTrunkError(f"{self.url}: {name}: the store refuses: {_code(error)} {message:.200}") from error
        except BotoCoreError as error:
            raise OneTrunkError(f"{self.url}: {name}: {str(error).splitlines()[0]:.300}") from error
        except OSError as error:
            raise OneTrunkError(f"{self.url}: {name}: {error.strerror or error}") from error


def _base64(sha256: str) -> str:
    return base64.b64encode(bytes.fromhex(sha256)).decode()


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
