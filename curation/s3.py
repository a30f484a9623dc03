"""S3 as the pipeline uses it: s3fs with one loop of retries a request, and reads that say which version they are of.

As they come, botocore retries inside s3fs, which retries inside its caller: a
store that answered SlowDown was asked 125 times in 215 seconds for one range,
with random pauses. Here botocore and s3fs ask once.
"""

import asyncio
import inspect
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

from aiobotocore.session import AioSession
from botocore.exceptions import ClientError, ConnectionError
from fsspec.asyn import sync_wrapper
from s3fs import S3FileSystem
from s3fs.core import S3_RETRYABLE_ERRORS

from curation.errors import AccessError, RequestError
from curation.storage import TRIES, pause

_RETRIED = {409, 429, 500, 502, 503, 504}  # 409: another create of the same name is under way
_CONNECTIONS = 32  # kept open by a process: several readers of eight requests each


class S3(S3FileSystem):  # type: ignore[misc] # s3fs has no types
    """A client for one set of options; its credentials are found by botocore in the process that uses it.

    Raises:
        TypeError: there is no such option.
    """

    retries = 1

    def __init__(self, config_kwargs: dict[str, Any] | None = None, **options: Any) -> None:
        config = {"max_pool_connections": _CONNECTIONS, "retries": {"total_max_attempts": 1}, **(config_kwargs or {})}
        super().__init__(config_kwargs=config, **options)
        self.swaps: set[str] = set()  # buckets that were seen to compare before they swap
        inspect.signature(AioSession).bind(
            **self.kwargs
        )  # what s3fs does not know goes there, but only when it connects

    async def _call_s3(self, method: str, *akwarglist: Any, **kwargs: Any) -> Any:
        """Any request of s3fs: pages of a listing and parts of an upload are retried one by one."""
        for attempt in range(TRIES):
            try:
                return await super()._call_s3(method, *akwarglist, **kwargs)
            except Exception as error:
                if not _passes(error):
                    raise
                if attempt == TRIES - 1:
                    said = " ".join(str(error).split()) or type(error).__name__
                    url = f"s3://{kwargs.get('Bucket', '')}/{kwargs.get('Key', kwargs.get('Prefix', ''))}"
                    raise AccessError(f"{url}: {method} failed {TRIES} times: {said}") from error
            await asyncio.sleep(pause(attempt))
        raise AssertionError("there is an attempt at least")

    call_s3 = sync_wrapper(_call_s3)

    def pages(self, path: str, deep: bool) -> Iterator[list[dict[str, Any]]]:
        """The objects below a path, or directly in it, as the store tells of them.

        While one page is looked at the next is on its way. A page takes the store longer than us: so a listing takes no
        longer than asking for it.
        """
        bucket, key, _ = self.split_path(path)
        asked = {"Bucket": bucket, "Prefix": f"{key}/" if key else "", "Delimiter": "" if deep else "/", **self.req_kw}

        def ask(**more: str) -> Future[Any]:
            return asyncio.run_coroutine_threadsafe(self._call_s3("list_objects_v2", **asked, **more), self.loop)

        coming: Future[Any] | None = ask()
        while coming:
            page = coming.result()
            coming = ask(ContinuationToken=page["NextContinuationToken"]) if page.get("IsTruncated") else None
            yield page.get("Contents", [])

    async def _fetch(self, path: str, start: int | None = None, stop: int | None = None) -> tuple[bytes, str]:
        """A file's bytes, all or from ``start`` up to ``stop``, and the ETag of the version that they are of.

        Raises:
            EOFError: the file ends before ``start``.
        """
        bucket, key, _ = self.split_path(path)
        limits = {} if start is None or stop is None else {"Range": f"bytes={start}-{stop - 1}"}
        try:
            answer = await self._call_s3("get_object", Bucket=bucket, Key=key, **limits)
        except OSError as error:
            if _status(error) == 416:
                raise EOFError(f"it ends before byte {start}") from error
            raise
        async with answer["Body"] as body:
            return await body.read(), answer.get("ETag", "").strip('"')

    fetch = sync_wrapper(_fetch)

    async def _put_if(self, path: str, data: bytes, version: str | None) -> bool:
        """Write a file by one PUT if it has this ETag (None: if there is none); whether the store took it.

        A 409 (another such PUT is under way) is asked again, as always: then there is an answer.

        Raises:
            RequestError: the store knows no such PUT.
        """
        bucket, key, _ = self.split_path(path)
        match = {"IfNoneMatch": "*"} if version is None else {"IfMatch": f'"{version}"'}
        try:
            await self._call_s3("put_object", Bucket=bucket, Key=key, Body=data, **match)
        except OSError as error:
            if _status(error) == 501:
                raise RequestError(
                    f"s3://{bucket}: this store has no PUT with If-Match: update it, or put the workspace elsewhere"
                ) from error
            if isinstance(error, FileExistsError) or _status(error) == 412:
                return False
            if isinstance(error, FileNotFoundError) and version is not None:  # it was removed
                return False
            raise
        self.invalidate_cache(path)
        return True

    put_if = sync_wrapper(_put_if)


def _passes(error: BaseException) -> bool:
    """Whether asking again may help: the network, or a store that is busy or at fault."""
    return isinstance(error, (*S3_RETRYABLE_ERRORS, ConnectionError)) or _status(error) in _RETRIED


def _status(error: BaseException) -> int:
    """The HTTP status that s3fs made an error of; 0 where there was no answer."""
    cause = error.__cause__
    if not isinstance(cause, ClientError) or isinstance(error, FileExistsError):
        return 0
    code = cause.response.get("Error", {}).get("Code", "")
    if code in ("SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "RequestLimitExceeded"):
        return 503  # some stores send these with another status
    return int(cause.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
