"""What URLs are called and how they are printed: never with credentials."""

import os
import re
from pathlib import Path
from urllib.parse import unquote

PLAIN_NAME = re.compile(r"[A-Za-z0-9_-]{1,60}")  # what may become part of a file's name
USER_INFO = re.compile(r"://[^/\s]*@")
_QUERY = re.compile(r"(https?://[^\s'\"?#]*)[?#][^\s'\"]*")


def is_local(url: str) -> bool:
    """Whether ``url`` is a path or a ``file:`` URL."""
    return "://" not in url or url.startswith("file://")


def local_path(url: str) -> str:
    """The path that ``url`` names, absolute; a ``file:`` URL may be percent-encoded."""
    path = url.removeprefix("file://")
    if path != url and not os.path.exists(path):
        path = unquote(path)
    return os.path.abspath(os.path.expanduser(path))


def path_below(url: str, around: str) -> str | None:
    """The path of a URL below another, links followed; empty where both are one, None where it does not lie there."""
    own, other = (os.path.realpath(local_path(one)) if is_local(one) else one.rstrip("/") for one in (url, around))
    return f"{own}/".removeprefix(f"{other}/").rstrip("/") if f"{own}/".startswith(f"{other}/") else None


def public_url(url: str) -> str:
    """``url`` as it may be printed: a ``file:`` URL for a path, and never with credentials.

    Only over http do ``?`` and ``#`` end a path (and may bring a signature); elsewhere they belong to names.
    """
    if is_local(url):
        return Path(local_path(url)).as_uri()
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    shown = host.rpartition("@")[2] + slash + path
    if scheme.lower().endswith(("http", "https")):
        shown = re.split("[?#]", shown, maxsplit=1)[0]
    return f"{scheme}://{shown}"


def file_name(url: str) -> str:
    """The last part of a path or URL, without a query (which may be a signature)."""
    name = url.rstrip("/").rpartition("/")[2]
    return name if is_local(url) else name.partition("?")[0]


def without_credentials(text: str) -> str:
    """A text as it may be kept: of URLs in it neither the user nor the query, which may be signed."""
    return _QUERY.sub(r"\1", USER_INFO.sub("://", text))


def without_secrets(text: str) -> str:
    """What a library's error says, in one line and without credentials."""
    return without_credentials(" ".join(text.split()))
