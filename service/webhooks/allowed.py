"""The hosts that an operator lists for webhooks: `HOST[:PORT][=NETWORK]`.

Owns the grammar of one entry. Without a network a listed name may resolve to public addresses only,
so that whoever owns the name cannot point it inside.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from service.webhooks.addresses import IPNetwork

DEFAULT_PORTS = (443, 80, 8443)
_ENTRY = re.compile(
    r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(?::(?P<port>[0-9]{1,5}))?(?:=(?P<network>\S+))?"
)


@dataclass(frozen=True)
class AllowedHost:
    """One listed host.

    Attributes:
        host: in the canonical form of a `Target`.
        port: the only port that this entry allows; None allows the usual ones.
        network: where the host's addresses may lie besides the open internet.
    """

    host: str
    port: int | None = None
    network: IPNetwork | None = None

    def matches(self, host: str, port: int) -> bool:
        """Whether this entry speaks of a target."""
        is_port = port in DEFAULT_PORTS if self.port is None else port == self.port
        return host == self.host and is_port

    def __str__(self) -> str:
        """The entry for a client: the network is nobody else's business."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port is None else f"{host}:{self.port}"


def parse_allowed(text: str) -> AllowedHost:
    """Read one entry.

    Raises:
        ValueError: says what is wrong with it.
    """
    match = _ENTRY.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not HOST, HOST:PORT or HOST:PORT=NETWORK")
    host, port = match["host"].lower().strip("[]"), match["port"]
    if port is not None and not 1 <= int(port) <= 65535:
        raise ValueError(f"{text!r}: a port is 1 to 65535")
    network = ip_network(match["network"]) if match["network"] else None
    if ":" in host or host.rpartition(".")[2].isdigit():
        # An address names itself: listing it is the permission.
        address = ip_address(host)
        host = str(address)
        network = network or ip_network(host)
    return AllowedHost(host, None if port is None else int(port), network)
