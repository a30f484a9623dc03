"""The options that stores are opened with: whose they are, and that there is no secret among them."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import fsspec

from curation.errors import RequestError
from curation.storage.urls import USER_INFO, is_local, without_credentials

Options = dict[str, dict[str, Any]]

PLACES = ("workspace", "references", "catalog")  # what storage options are given for by name, besides roots

_SECRET_NAMES = {"key", "username"}
_SECRET_PARTS = re.compile(
    "secret|password|passwd|token|credential|connection_string|access_key|account_key|sas|authorization"
)
_KEY = re.compile(r"[-+~]*[A-Za-z_][\w.@/-]*")  # of an override, or an option's name
_NAMED = re.compile(  # a secret in a mapping, a query or a header
    rf"({_SECRET_PARTS.pattern}|storage|key|username|pass|pwd|auth|sig)[\w-]*['\"]?\s*[:=]", re.IGNORECASE
)
_ACCOUNT = re.compile(r"://\S*@\S*")
_QUERY = re.compile(r"[?#]\S*=\S*")
_WORD = re.compile(r"[^\s,;:/@?&={}\[\]'\"]{6,}+(?!\s*['\"]?[:=])")  # but for names in a mapping
HIDDEN = "…"


def check_storage_options(options: dict[str, Any]) -> None:
    """Refuse secrets in the config, at any depth: they would end up in files and logs.

    Raises:
        RequestError: an option looks like a credential, or what a protocol or root is given is no mapping.
    """
    for name, values in options.items():
        if not isinstance(values, dict):
            raise RequestError(
                f"runtime.storage.{name} is no mapping: write runtime.storage={{{name}: {{option: value}}}}"
            )
        _refuse_secrets(f"runtime.storage.{name}", values)


def check_storage_names(options: Mapping[str, Any] | None, roots: Iterable[str]) -> None:
    """Refuse options that would never be used.

    Args:
        options: per protocol, root or place of :data:`PLACES`.
        roots: what the roots of the archive are called.

    Raises:
        RequestError: a name is none of these; the message has the choices.
    """
    names = [*roots, *PLACES]
    for name in options or {}:
        if name not in names and name.split("::")[0] not in fsspec.available_protocols():
            raise RequestError(
                f"storage options are given for {name!r}, which is no protocol (s3, gs, …) and no root: "
                f"choose a protocol, or one of {', '.join(names)}"
            )


def options_for(options: Options | None, name: str, url: str) -> Options:
    """The options to open ``url`` with, as :class:`Folder` takes them.

    Args:
        options: per protocol, root or place.
        name: of the root or place that lies at ``url``; its own options go over its protocol's.
        url: where it lies.
    """
    options = options or {}
    if is_local(url) or name not in options:
        return options
    protocol = url.split("://", 1)[0]
    return {**options, protocol: _merge(options.get(protocol, {}), options[name])}


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Both mappings; where both have a mapping at a key, these are merged as well."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(below.get(key), dict)
        merged[key] = _merge(below[key], value) if both else value
    return merged


def _refuse_secrets(where: str, value: Any) -> None:
    advice = "does not belong in a config; give credentials by environment, profile or instance role"
    if isinstance(value, dict):
        for name, below in value.items():
            if names_secret(str(name)):
                raise RequestError(f"{where}.{name} is a secret and {advice}")
            _refuse_secrets(f"{where}.{name}", below)
    elif isinstance(value, list):
        for below in value:
            _refuse_secrets(where, below)
    elif isinstance(value, str) and USER_INFO.search(value):
        raise RequestError(f"{where} is a URL with a user in it, which {advice}")


def names_secret(name: str) -> bool:
    """Whether an option or variable of this name would be a credential."""
    plain = name.lower().replace("-", "_")
    return plain in _SECRET_NAMES or _SECRET_PARTS.search(plain) is not None


def public_arguments(arguments: Sequence[str]) -> list[str]:
    """A command line as it may be kept: storage options and whatever looks like a credential are hidden.

    More is hidden than must be: of a URL with a user all of it, of one with a query the query.
    """
    shown, secret = [], False
    for text in arguments:
        key, equals, value = text.partition("=")
        if not equals or not _KEY.fullmatch(key):
            key, equals, value = "", "", text
        named = "storage" in key.lower() or any(map(names_secret, re.split("[./@]", key.lstrip("-+~"))))
        if secret:
            key, equals, value = "", "", HIDDEN
        elif named or _NAMED.search(value):
            value = HIDDEN
        else:
            value = without_credentials(_QUERY.sub("?" + HIDDEN, _ACCOUNT.sub("://" + HIDDEN, value)))
        shown.append(key + equals + value)
        secret = text.startswith("-") and not equals and names_secret(text.lstrip("-"))  # then it takes the next
    return shown


def hidden_parts(arguments: Sequence[str]) -> list[str]:
    """What :func:`public_arguments` hides, and the words in it, the longest first: messages may quote a part."""
    found: set[str] = set()
    for text, shown in zip(arguments, public_arguments(arguments), strict=True):
        if text != shown:
            hidden = text[len(os.path.commonprefix([text, shown])) :]
            account = shown.endswith("://" + HIDDEN)
            found |= {hidden, *_WORD.findall(hidden.rpartition("@")[0] if account else hidden)}
    return sorted((part for part in found if len(part) >= 6), key=lambda part: (-len(part), part))  # not every "me"
