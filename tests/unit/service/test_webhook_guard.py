"""Which URLs and addresses a webhook may use: a table, and every spelling of an address."""

from __future__ import annotations

import ipaddress
import re
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from webhook_urls import all_refused_urls, refusal

from service.errors import InvalidRequest, WebhookBlocked
from service.webhooks.addresses import is_public
from service.webhooks.guard import Guard, Target, webhooks_off

PUBLIC = Guard()


@pytest.mark.parametrize(("kind", "url"), all_refused_urls())
def test_every_url_of_the_table_is_refused(kind: str, url: str) -> None:
    refusal(PUBLIC, url)


def test_the_table_is_long_enough_and_repeats_nothing() -> None:
    urls = [url for _, url in all_refused_urls()]
    assert len(urls) == len(set(urls)) >= 200


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://hooks.example.org/", "must begin with https"),
        ("https://10.0.0.1/", "not a public one"),
        ("https://0x7f000001/", "four decimal numbers"),
        ("https://a:b@hooks.example.org/", "credentials"),
        ("https://hooks.example.org:22/", "port 22"),
        ("https://b\u00fccher.de/", "xn--"),
        ("https://redis/", "public name"),
        ("https://hooks.example.org./", "the host is no name"),
        ("https://hooks.example.org/#a", "after #"),
        ("https://hooks.example.org/{a}", "percent-encode"),
        ("https://hooks.example.org/" + "a" * 2048, "too many"),
    ],
)
def test_a_refusal_says_why(url: str, reason: str) -> None:
    assert reason in refusal(PUBLIC, url).detail


def test_a_refusal_does_not_repeat_the_url() -> None:
    detail = refusal(PUBLIC, "https://hooks.example.org:22/t0ken?key=t0ken").detail
    assert "t0ken" not in detail


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("https://hooks.example.org", Target("https", "hooks.example.org", 443, "/")),
        ("HTTPS://Hooks.Example.ORG/P", Target("https", "hooks.example.org", 443, "/P")),
        ("https://a.org:8443/b?c=d&e", Target("https", "a.org", 8443, "/b?c=d&e")),
        ("https://a.org:80/", Target("https", "a.org", 80, "/")),
        ("https://a.org?q=@x", Target("https", "a.org", 443, "/?q=@x")),
        ("https://a.org/u@x:y//../%0d%0a", Target("https", "a.org", 443, "/u@x:y//../%0d%0a")),
        ("https://xn--bcher-kva.de/", Target("https", "xn--bcher-kva.de", 443, "/")),
        ("https://1e100.net/", Target("https", "1e100.net", 443, "/")),
        ("https://8.8.8.8/", Target("https", "8.8.8.8", 443, "/")),
        ("https://[2A00:1450:0::8]/", Target("https", "2a00:1450::8", 443, "/")),
        ("https://" + "a." * 125 + "com/", Target("https", "a." * 125 + "com", 443, "/")),
    ],
)
def test_an_ordinary_url_is_accepted(url: str, target: Target) -> None:
    assert PUBLIC.check(url) == target


@pytest.mark.parametrize(
    ("url", "header"),
    [
        ("https://a.org/", "a.org"),
        ("https://a.org:8443/", "a.org:8443"),
        ("https://a.org:80/", "a.org:80"),
        ("https://[2a00::1]/", "[2a00::1]"),
        ("https://[2a00::1]:8443/", "[2a00::1]:8443"),
    ],
)
def test_the_host_header_is_the_url_s(url: str, header: str) -> None:
    assert PUBLIC.check(url).host_header == header


def test_http_is_taken_where_it_is_allowed() -> None:
    guard = Guard(is_http_allowed=True)
    assert guard.check("http://a.org/") == Target("http", "a.org", 80, "/")
    assert guard.check("http://a.org:8443/").host_header == "a.org:8443"
    refusal(guard, "http://127.0.0.1/")
    refusal(guard, "ftp://a.org/")


CLOSED_V4 = st.one_of(
    *(
        st.ip_addresses(v=4, network=network)
        for network in (
            *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
            *("172.16.0.0/12", "192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/4", "240.0.0.0/4"),
        )
    )
)


def _number(draw: Any, value: int) -> str:
    """One of the spellings that a resolver of the C library reads as this number."""
    form = draw(st.sampled_from(["{:d}", "0x{:x}", "0X{:X}", "0{:o}", "0x{:08x}", "{:03d}"]))
    return str(form.format(value))


@st.composite
def spellings(draw: Any, addresses: st.SearchStrategy[IPv4Address] = CLOSED_V4) -> str:
    """A host that some parser reads as one of the addresses."""
    address = draw(addresses)
    value = int(address)
    num_parts = draw(st.integers(1, 4))
    # The last part holds all the bytes that the ones before it left.
    heads = [value >> (24 - 8 * i) & 0xFF for i in range(num_parts - 1)]
    last = value & (1 << (8 * (5 - num_parts))) - 1
    dotted = ".".join(_number(draw, part) for part in (*heads, last))
    hexed = f"{value >> 16:x}:{value & 0xFFFF:x}"
    return str(
        draw(
            st.sampled_from(
                [
                    dotted,
                    f"{dotted}.",
                    str(address),
                    f"{address}.",
                    f"[::ffff:{address}]",
                    f"[::FFFF:{hexed}]",
                    f"[::{address}]",
                    f"[64:ff9b::{hexed}]",
                    f"[64:ff9b:1::{hexed}]",
                    f"[2002:{hexed}::1]",
                    f"[2001:0:{hexed}::1]",
                    "".join(f"%{ord(letter):02x}" for letter in str(address)),
                    str(address).replace(".", "\u3002"),
                    "".join(
                        chr(ord(letter) + 0xFEE0) if letter.isdigit() else letter
                        for letter in str(address)
                    ),
                ]
            )
        )
    )


@given(spellings(), st.sampled_from(["", ":443", ":8443"]), st.sampled_from(["", "/", "/a?b"]))
def test_no_spelling_of_a_closed_address_is_accepted(host: str, port: str, path: str) -> None:
    refusal(PUBLIC, f"https://{host}{port}{path}")


@given(spellings(st.ip_addresses(v=4)))
def test_what_is_accepted_as_an_address_is_exactly_that_address(host: str) -> None:
    try:
        target = PUBLIC.check(f"https://{host}/")
    except InvalidRequest:
        return
    assert target.host == host
    assert is_public(ipaddress.ip_address(target.host))


@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_whatever_is_accepted_needs_no_second_reading(rest: str) -> None:
    url = f"https://{rest}"
    try:
        target = PUBLIC.check(url)
    except InvalidRequest as error:
        assert error.field == "webhook"
        return
    assert re.fullmatch(r"[a-z0-9.:-]+", target.host)
    assert target.path.startswith("/") and target.path.isascii() and target.path.isprintable()


@given(st.ip_addresses())
def test_nothing_that_python_calls_private_is_public(address: IPv4Address | IPv6Address) -> None:
    closed = address.is_private or address.is_multicast or address.is_reserved
    assert not (is_public(address) and closed)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "100.63.255.255", "100.128.0.0", "172.32.0.1", "2a00::1"]
)
def test_public_addresses_are_public(address: str) -> None:
    PUBLIC.check_addresses("a.org", 443, [address])


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["8.8.8.8", "10.0.0.1"],
        ["2a00::1", "::ffff:8.8.8.8"],
        ["fe80::1%eth0"],
        ["2a00::1%2"],
        ["not an address"],
    ],
)
def test_one_address_inside_blocks_the_whole_name(addresses: list[str]) -> None:
    with pytest.raises(WebhookBlocked, match=r"a\.org"):
        PUBLIC.check_addresses("a.org", 443, addresses)


def test_where_webhooks_are_off_the_field_is_refused() -> None:
    assert (webhooks_off().field, "leave" in webhooks_off().detail) == ("webhook", True)
