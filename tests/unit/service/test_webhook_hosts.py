"""Where an operator lists hosts, nothing else may be called, and inside only as a network says."""

from __future__ import annotations

import pytest
from webhook_urls import refusal

from service.errors import WebhookBlocked
from service.webhooks.allowed import parse_allowed
from service.webhooks.guard import Guard

LISTED = Guard(
    [
        parse_allowed(entry)
        for entry in (
            "Hooks.Example.org",
            "inside:9000=10.1.0.0/16",
            "10.2.3.4:8443",
            "[fd00::5]:9001",
        )
    ],
    is_http_allowed=True,
)


@pytest.mark.parametrize(
    "url",
    [
        *("https://hooks.example.org/", "https://hooks.example.org:8443/", "http://inside:9000/a"),
        *("https://10.2.3.4:8443/", "https://[fd00::5]:9001/", "https://[fd00:0::5]:9001/"),
    ],
)
def test_what_is_listed_may_be_called(url: str) -> None:
    LISTED.check(url)


@pytest.mark.parametrize(
    "url",
    [
        *("https://other.example.org/", "https://hooks.example.org:9000/", "https://inside/"),
        *("https://a.hooks.example.org/", "https://10.2.3.4/", "https://10.2.3.5:8443/"),
        *("https://[fd00::5]/", "https://8.8.8.8/", "https://0x0a.2.3.4:8443/"),
        "https://hooks.example.org@10.2.3.4:8443/",
    ],
)
def test_where_hosts_are_listed_nothing_else_may_be_called(url: str) -> None:
    refusal(LISTED, url)


def test_a_refused_host_is_told_the_list_without_networks() -> None:
    assert refusal(LISTED, "https://other.org/").allowed == [
        *("hooks.example.org", "inside:9000", "10.2.3.4:8443", "[fd00::5]:9001")
    ]


def test_a_listed_name_lies_inside_only_where_its_network_says_so() -> None:
    LISTED.check_addresses("inside", 9000, ["10.1.2.3", "8.8.8.8"])
    LISTED.check_addresses("10.2.3.4", 8443, ["10.2.3.4"])
    LISTED.check_addresses("fd00::5", 9001, ["fd00::5"])
    for host, port, address in (
        ("inside", 9000, "10.2.0.1"),
        ("inside", 443, "10.1.2.3"),
        ("hooks.example.org", 443, "10.1.2.3"),
        ("10.2.3.4", 8443, "10.2.3.5"),
    ):
        with pytest.raises(WebhookBlocked):
            LISTED.check_addresses(host, port, [address])


@pytest.mark.parametrize(
    "entry",
    [
        *("", "https://a.org", "a.org/", "a.org:0", "a.org:65536", "a.org:x", "a.org=", "a b"),
        *("a.org=10.0.0.1/8", "a.org=inside", "127.1", "10.0.0.256", "[::g]", "::1", "*.a.org"),
    ],
)
def test_a_malformed_entry_is_refused(entry: str) -> None:
    with pytest.raises(ValueError):
        parse_allowed(entry)
