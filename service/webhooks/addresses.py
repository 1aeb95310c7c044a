"""Which IP addresses are public, and which belong to a network that nobody outside may reach.

Owns the tables. They are written out because `ipaddress` judges some of these networks otherwise
from one Python release to the next. Knows neither names nor URLs.

Source: IANA IPv4 and IPv6 Special-Purpose Address Registries, IANA IPv6 Address Space.
"""

from __future__ import annotations

from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
)

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network

_CLOSED_V4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network; a system may take it for itself
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # behind a provider's NAT; a cloud's metadata service too
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # the host of a virtual machine on Azure
        "169.254.0.0/16",  # link-local; most clouds' metadata services
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # IETF protocols; a cloud's metadata service too
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # relays of 6to4
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
    )
)
# Everything else carries an IPv4 address inside (mapped, NAT64), is local, multicast or reserved.
_OPEN_V6 = IPv6Network("2000::/3")
_CLOSED_V6 = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # IETF protocols, Teredo among them: an IPv4 address inside
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: an IPv4 address inside
        "3fff::/20",  # documentation
    )
)


def is_public(address: IPAddress) -> bool:
    """Whether an address belongs to the open internet."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _CLOSED_V4)
    return address in _OPEN_V6 and not any(address in network for network in _CLOSED_V6)


def parse_address(text: str) -> IPAddress:
    """The address that a resolver or a URL names.

    Raises:
        ValueError: it is none, or one that holds only on a named interface of this machine.
    """
    address = ip_address(text)
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        raise ValueError(f"{text} is bound to an interface")
    return address
