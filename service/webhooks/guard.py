"""Which URLs may be called: the check at admission and the check of what a name resolved to.

Owns the one parse of a webhook's URL. What comes out of it, `Target`, is what the connection is
made from, so no second parser can read the URL otherwise. Names are judged by their spelling here
and by their addresses when a delivery has resolved them; knows no resolver and no socket. A URL
never appears in an error text: it may carry a token.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from service.errors import InvalidRequest, WebhookBlocked
from service.webhooks.addresses import IPAddress, is_public, parse_address
from service.webhooks.allowed import DEFAULT_PORTS, AllowedHost

FIELD = "webhook"
MAX_URL_CHARS = 2048
MAX_HOST_CHARS = 253
_DEFAULT_PORT = {"https": 443, "http": 80}

# Names that lead inside by convention; no public certificate is issued for any of them.
_INSIDE_SUFFIXES = (
    *("localhost", "localdomain", "local", "internal", "intranet", "lan", "home", "corp"),
    *("private", "arpa", "onion", "test", "invalid", "example"),
)
_VISIBLE_ASCII = re.compile(r"[!-~]+")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([^#]*)(#.*)?")
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(?::([0-9]{1,5}))?")
# RFC 3986, section 3.3 and 3.4: everything else travels percent-encoded.
_PATH_AND_QUERY = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*")
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
# A name whose last label looks like a number is an address to some resolver.
# Source: WHATWG URL standard, "ends in a number checker".
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


@dataclass(frozen=True)
class Target:
    """Where a webhook goes.

    Attributes:
        host: lower-case name, or an IP address in its canonical form without brackets.
        path: path and query as they are sent.
    """

    scheme: str
    host: str
    port: int
    path: str

    @property
    def host_header(self) -> str:
        """The Host header: brackets around an IPv6 address, the port where it is not usual."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORT[self.scheme] else f"{host}:{self.port}"


class Guard:
    """Decides which URLs and which addresses a webhook may use.

    Args:
        allowed: where this is not empty, nothing else may be called.
        is_http_allowed: whether a URL may be without TLS.
    """

    def __init__(self, allowed: Iterable[AllowedHost] = (), is_http_allowed: bool = False) -> None:
        self._allowed = tuple(allowed)
        self._schemes = ("https", "http") if is_http_allowed else ("https",)

    def check(self, url: str) -> Target:
        """Check a URL as a client gave it.

        Raises:
            InvalidRequest: names the field `webhook` and what it may be.
        """
        target = self._parse(url)
        if self._allowed:
            if not self._entries(target.host, target.port):
                raise _refuse("this service calls listed hosts only", allowed=self._listed())
            return target
        if target.port not in DEFAULT_PORTS:
            raise _refuse(
                f"port {target.port} is none that may be called", allowed=list(DEFAULT_PORTS)
            )
        if _is_address(target.host):
            if not is_public(parse_address(target.host)):
                raise _refuse("the address is not a public one")
        elif "." not in target.host or target.host.rpartition(".")[2] in _INSIDE_SUFFIXES:
            raise _refuse("the host must have a public name, like hooks.example.com")
        return target

    def check_addresses(self, host: str, port: int, addresses: Sequence[str]) -> None:
        """Check everything that a host's name resolved to.

        Raises:
            WebhookBlocked: one of the addresses is not public, and nothing listed permits it.
        """
        networks = [entry.network for entry in self._entries(host, port) if entry.network]
        for text in addresses:
            try:
                address: IPAddress = parse_address(text)
            except ValueError:
                raise WebhookBlocked(f"{host} has an address of one interface") from None
            if not is_public(address) and not any(address in network for network in networks):
                raise WebhookBlocked(f"{host} has an address that is not public")

    def _parse(self, url: str) -> Target:
        if len(url) > MAX_URL_CHARS:
            raise _refuse(
                f"{len(url)} characters are too many", allowed={"max_chars": MAX_URL_CHARS}
            )
        if _VISIBLE_ASCII.fullmatch(url) is None:
            raise _refuse(
                "a URL holds visible ASCII only: write a host in its xn-- form and percent-encode "
                "the rest"
            )
        parts = _URL.fullmatch(url)
        if parts is None:
            raise _refuse("must be a whole URL, like https://hooks.example.com/path")
        scheme, authority, path = parts[1].lower(), parts[2], parts[3]
        if scheme not in self._schemes:
            raise _refuse(
                f"must begin with {' or '.join(self._schemes)}", allowed=list(self._schemes)
            )
        if parts[4] is not None:
            raise _refuse("a part after # is never sent: leave it out")
        if "@" in authority:
            raise _refuse("must hold no credentials: deliveries are signed instead")
        if _PATH_AND_QUERY.fullmatch(path) is None:
            raise _refuse("percent-encode what is no letter, digit or URL punctuation in the path")
        match = _AUTHORITY.fullmatch(authority)
        if match is None:
            raise _refuse("the host must be a name of letters, digits and hyphens, or an address")
        host = _canonical_host(match[1].lower())
        port = int(match[2]) if match[2] else _DEFAULT_PORT[scheme]
        return Target(scheme, host, port, path if path.startswith("/") else f"/{path}")

    def _entries(self, host: str, port: int) -> list[AllowedHost]:
        return [entry for entry in self._allowed if entry.matches(host, port)]

    def _listed(self) -> list[str]:
        return [str(entry) for entry in self._allowed]


def webhooks_off() -> InvalidRequest:
    """The refusal of a webhook where the service sends none."""
    return _refuse("this service sends no webhooks: leave the field out")


def _canonical_host(host: str) -> str:
    """The one spelling of a host.

    Raises:
        InvalidRequest: another spelling, or nothing that can be a host.
    """
    if host.startswith("["):
        try:
            return str(IPv6Address(host[1:-1]))
        except ValueError:
            raise _refuse("what stands in brackets is no IPv6 address") from None
    if _NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2]):
        try:
            return str(IPv4Address(host))
        except ValueError:
            raise _refuse("an IPv4 address is four decimal numbers, like 192.0.2.1") from None
    if len(host) > MAX_HOST_CHARS or not all(map(_LABEL.fullmatch, host.split("."))):
        raise _refuse("the host is no name: parts of 1 to 63 letters, digits and inner hyphens")
    return host


def _is_address(host: str) -> bool:
    """Whether a canonical host is an IP address."""
    return ":" in host or host.rpartition(".")[2].isdigit()


def _refuse(detail: str, allowed: object = None) -> InvalidRequest:
    return InvalidRequest(f"{FIELD}: {detail}", field=FIELD, allowed=allowed)
