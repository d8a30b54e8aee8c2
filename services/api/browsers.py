"""What a browser may not do for a page of another site: without keys the API must not be tricked. Pure.

A page may send simple POSTs to any address (cross-site request forgery), and with a name of its own that resolves to
127.0.0.1 it may read answers too (DNS rebinding). Neither works without a foreign `Origin` or `Host`.
"""

import ipaddress
from collections.abc import Collection, Mapping
from functools import lru_cache
from urllib.parse import urlsplit

from services.api.problems import ForeignHostError, ForeignOriginError

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

# What proxies add (RFC 7239, RFC 9110 7.6.3, and the custom). One that adds nothing cannot be told from a program here.
_OF_PROXIES = (b"forwarded", b"via", b"x-real-ip")


def came_through_a_proxy(headers: Mapping[bytes, bytes]) -> bool:
    """Whether a proxy says so, by any header: who reaches us then is anybody who reaches the proxy."""
    return any(name in _OF_PROXIES or name.startswith(b"x-forwarded") for name in headers)


def refuse_foreign_pages(
    method: str, headers: Mapping[bytes, bytes], *, own_names_only: bool, welcome: Collection[str] = ()
) -> None:
    """Raises ForeignHostError or ForeignOriginError.

    `own_names_only`: answer to loopback names alone, unless a key is sent, which no page has of itself. Other clients
    than browsers may send what they like; they are not what this protects against. `welcome`: origins whose pages may.
    """
    host = headers.get(b"host", b"").decode("latin-1")
    if own_names_only and b"authorization" not in headers and host and not is_loopback(_name(host)):
        raise ForeignHostError(
            "Without a key this API is offered on loopback only, as 127.0.0.1 or localhost; send a key of the API."
        )
    if method in SAFE_METHODS or headers.get(b"origin", b"").decode("latin-1") in welcome:
        return
    if _is_of_another_site(headers, host):
        raise ForeignOriginError("The request comes from a page of another site.")


def _is_of_another_site(headers: Mapping[bytes, bytes], host: str) -> bool:
    """By `Sec-Fetch-Site`, which every present browser sends and no proxy changes; by `Origin` where it is missing."""
    site = headers.get(b"sec-fetch-site")
    if site is not None:
        return site not in (b"same-origin", b"none")
    origin = headers.get(b"origin", b"").decode("latin-1")
    return bool(origin) and urlsplit(origin).netloc.lower() != host.lower()


@lru_cache(maxsize=256)
def is_loopback(name: str) -> bool:
    """Whether a host name or address means this very machine."""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name.lower() == "localhost"


def _name(host: str) -> str:
    """The host without its port: `127.0.0.1:8000`, `[::1]:8000`, `localhost`."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
