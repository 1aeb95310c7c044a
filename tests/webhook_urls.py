"""URLs that no webhook may have, by kind. Every one must be refused with the field `webhook` named.

Adding one is adding a line. The guard's own test runs them all, and so may any surface that takes
the field.
"""

from __future__ import annotations

import pytest

from service.errors import InvalidRequest
from service.webhooks.guard import Guard

REFUSED_URLS: dict[str, tuple[str, ...]] = {
    "no url": (
        *(
            "",
            " ",
            "/",
            "//",
            "hook",
            "hooks.example.com",
            "https",
            "https:",
            "https:/",
            "https://",
        ),
        *("//hooks.example.com/", "https:///", "https:///path", "https:hooks.example.com"),
        *("https:/hooks.example.com", "://hooks.example.com/", "https//hooks.example.com/"),
        "https://:443/",
    ),
    "another scheme": (
        *("http://hooks.example.com/", "HTTP://hooks.example.com/", "ftp://hooks.example.com/"),
        *("file:///etc/passwd", "file://localhost/etc/passwd", "gopher://127.0.0.1:6379/_INFO"),
        *("dict://127.0.0.1:11211/stats", "ldap://127.0.0.1/", "unix:///var/run/docker.sock"),
        *("data://text/plain,hello", "javascript://hooks.example.com/%0aalert(1)"),
        *("ws://hooks.example.com/", "wss://hooks.example.com/", "jar:https://a.com!/"),
        *("https+unix://%2Fvar%2Frun%2Fdocker.sock/", "view-source:https://hooks.example.com/"),
    ),
    "loopback": (
        *("https://127.0.0.1/", "https://127.0.0.1:443/", "https://127.1.2.3/"),
        *("https://127.255.255.254/", "https://localhost/", "https://LOCALHOST/"),
        *("https://sub.localhost/", "https://localhost.localdomain/", "https://[::1]/"),
        *("https://[0:0:0:0:0:0:0:1]/", "https://[0000::0001]/", "https://[::]/"),
    ),
    "unspecified": ("https://0.0.0.0/", "https://0.1.2.3/", "https://0/", "https://[0::0]/"),
    "private": (
        *("https://10.0.0.1/", "https://10.255.255.255/", "https://172.16.0.1/"),
        *("https://172.31.255.255/", "https://192.168.0.1/", "https://192.168.255.255/"),
        *("https://[fc00::1]/", "https://[fd00::1]/", "https://[fdff:ffff::1]/"),
        *("https://[fec0::1]/", "https://[feff::1]/"),
    ),
    "link-local and metadata": (
        *("https://169.254.169.254/latest/meta-data/", "https://169.254.0.1/"),
        *("https://169.254.170.2/v2/credentials", "https://[fe80::1]/", "https://[febf::1]/"),
        *("https://[fd00:ec2::254]/latest/", "https://[fd20:ce::254]/"),
        *("https://100.100.100.200/latest/", "https://168.63.129.16/", "https://192.0.0.192/"),
        *("https://metadata.google.internal/computeMetadata/v1/", "https://metadata/"),
        *("https://[fe80::1%25eth0]/", "https://[fe80::1%eth0]/", "https://[fe80::1%251]/"),
    ),
    "carrier-grade NAT": ("https://100.64.0.1/", "https://100.127.255.255/", "https://100.64.0.0/"),
    "reserved, multicast, documentation": (
        *("https://192.0.0.1/", "https://192.0.2.1/", "https://198.51.100.1/"),
        *("https://203.0.113.1/", "https://198.18.0.1/", "https://198.19.255.255/"),
        *("https://192.88.99.1/", "https://224.0.0.1/", "https://239.255.255.255/"),
        *("https://240.0.0.1/", "https://255.255.255.255/", "https://[ff02::1]/"),
        *("https://[ff0e::1]/", "https://[2001:db8::1]/", "https://[3fff::1]/"),
        *("https://[100::1]/", "https://[5f00::1]/", "https://[4000::1]/", "https://[e000::1]/"),
        *("https://[2001:2::1]/", "https://[2001:20::1]/"),
    ),
    "an IPv4 address inside an IPv6 one": (
        *("https://[::ffff:127.0.0.1]/", "https://[::ffff:7f00:1]/", "https://[::ffff:8.8.8.8]/"),
        *("https://[::FFFF:10.0.0.1]/", "https://[0:0:0:0:0:ffff:169.254.169.254]/"),
        *("https://[::127.0.0.1]/", "https://[::7f00:1]/", "https://[::ffff:0:127.0.0.1]/"),
        *("https://[64:ff9b::127.0.0.1]/", "https://[64:ff9b::a9fe:a9fe]/"),
        *(
            "https://[64:ff9b:1::7f00:1]/",
            "https://[2002:7f00:1::]/",
            "https://[2002:a9fe:a9fe::1]/",
        ),
        *("https://[2001::1]/", "https://[2001:0:4136:e378:8000:63bf:80ff:fffe]/"),
    ),
    "odd spellings of an address": (
        *("https://2130706433/", "https://0x7f000001/", "https://0x7F.0x0.0x0.0x1/"),
        *("https://017700000001/", "https://0177.0.0.1/", "https://0177.0.0.01/"),
        *("https://127.1/", "https://127.0.1/", "https://127.0.0.1.5/", "https://127.0.0/"),
        *("https://10.1/", "https://0x7f.1/", "https://127.0.0.0x1/", "https://0x/"),
        *("https://8.8.8/", "https://08.8.8.8/", "https://8.8.8.008/", "https://256.0.0.1/"),
        *(
            "https://4294967296/",
            "https://1.1.1.1.1/",
            "https://-1.0.0.1/",
            "https://127.0.0.1a.1/",
        ),
        *("https://3232235521/", "https://425.510.425.510/", "https://0xa9fea9fe/"),
        *("https://[1.1.1.1]/", "https://[::g]/", "https://[::1/", "https://::1]/", "https://::1/"),
        *("https://[]/", "https://[:]/", "https://[1:2:3]/", "https://[::1]a/", "https://a[::1]/"),
        *("https://[v1.fe80::a]/", "https://[2a00::1]]/", "https://[[2a00::1]]/"),
    ),
    "dots": (
        *("https://hooks.example.com./", "https://127.0.0.1./", "https://localhost./"),
        *("https://.hooks.example.com/", "https://hooks..example.com/", "https://./"),
        *("https://../", "https://hooks.example.com../", "https://127.0.0.1../"),
    ),
    "not ASCII": (
        *("https://\u2460\u2461\u2466.\u24ea.\u24ea.\u2460/", "https://127\u30020\u30020\u30021/"),
        *(
            "https://\uff11\uff12\uff17.0.0.1/",
            "https://loc\u0430lhost/",
            "https://b\u00fccher.de/",
        ),
        *(
            "https://ex\u00adample.com/",
            "https://hooks\uff0eexample.com/",
            "https://\u202ehooks.com/",
        ),
        *("https://hooks.example.com\u2044path/", "https://hooks.example.com/p\u00e4th"),
        *("https://hooks.example.com\uff20127.0.0.1/", "https://\u24db\u24de\u24d2al\u210bost/"),
        *(
            "\uff48ttps://hooks.example.com/",
            "https://hooks.example.com\u3002/",
            "https://\ud800.com/",
        ),
        "https://127.0.0.\u0661/",
    ),
    "percent-encoding": (
        *("https://%31%32%37.0.0.1/", "https://127%2e0%2e0%2e1/", "https://localhost%00.com/"),
        *("https://hooks.example.com%2f@127.0.0.1/", "https://hooks%2Eexample.com/"),
        *(
            "https://%6c%6f%63alhost/",
            "https://hooks.example.com/%",
            "https://hooks.example.com/%zz",
        ),
        *("https://hooks.example.com%23.a.com/", "https://hooks.example.com/?a=%2"),
    ),
    "credentials": (
        *("https://user@hooks.example.com/", "https://user:pass@hooks.example.com/"),
        *("https://hooks.example.com@127.0.0.1/", "https://:@hooks.example.com/"),
        *("https://@hooks.example.com/", "https://a@b@hooks.example.com/"),
        *("https://127.0.0.1:443@hooks.example.com/", "https://hooks.example.com:443@10.0.0.1/"),
    ),
    "backslashes": (
        *(
            "https:\\\\hooks.example.com/",
            "https:/\\127.0.0.1/",
            "https://hooks.example.com\\@a.com/",
        ),
        *("https://127.0.0.1\\.hooks.example.com/", "https://hooks.example.com/\\..\\"),
        "\\\\hooks.example.com\\share",
    ),
    "white space and control characters": (
        *(
            " https://hooks.example.com/",
            "https://hooks.example.com/ ",
            "https:// hooks.example.com/",
        ),
        *("https://hooks.example.com/a b", "https://hooks.exam\tple.com/", "ht\ntps://hooks.com/"),
        *(
            "https://hooks.example.com/\r\nHost: a",
            "https://hooks.example.com\x00/",
            "\x00https://a.com/",
        ),
        *(
            "https://hooks.example.com/\x7f",
            "https://hooks.example.com/\x1b[0m",
            "https://a.com\x0b/",
        ),
        *(
            "https://hooks.example.com\u00a0/",
            "https://hooks.example.com/\u2028",
            "\ufeffhttps://a.com/",
        ),
        *("https://hooks.example.com\n", "https://hooks.example.com/path\n"),
    ),
    "fragments": ("https://hooks.example.com/#part", "https://hooks.example.com#@127.0.0.1/"),
    "ports": (
        *("https://hooks.example.org:22/", "https://hooks.example.org:6379/", "https://a.org:0/"),
        *("https://hooks.example.org:65536/", "https://hooks.example.org:99999999/"),
        *("https://hooks.example.org:/", "https://hooks.example.org:+443/", "https://a.org:-1/"),
        *("https://hooks.example.org:0x1bb/", "https://hooks.example.org:443:443/"),
        *("https://hooks.example.org:4 43/", "https://hooks.example.org:\u0664\u0664\u0663/"),
        *("https://hooks.example.org:8080/", "https://hooks.example.org:443a/"),
    ),
    "names that lead inside": (
        *("https://intranet/", "https://redis/", "https://kubernetes.default.svc.cluster.local/"),
        *("https://printer.local/", "https://router.lan/", "https://nas.home.arpa/"),
        *("https://db.internal/", "https://ad.corp/", "https://box.home/", "https://hidden.onion/"),
        *("https://1.0.0.127.in-addr.arpa/", "https://hooks.test/", "https://nowhere.invalid/"),
    ),
    "malformed names": (
        *(
            "https://-hooks.com/",
            "https://hooks-.com/",
            "https://ho_oks.com/",
            "https://ho!oks.com/",
        ),
        *("https://" + "a" * 64 + ".com/", "https://" + "a." * 126 + "com/", "https://*.com/"),
        *(
            "https://hooks,com/",
            "https://hooks.com;a/",
            "https://{hooks}.com/",
            "https://ho'oks.com/",
        ),
        *("https://$(id).com/", "https://a.com&b.com/", "https://a.com|b.com/", "https://<a>.com/"),
    ),
    "what must be percent-encoded": (
        *('https://hooks.example.com/"', "https://hooks.example.com/<a>", "https://a.com/{b}"),
        *(
            "https://hooks.example.com/a|b",
            "https://hooks.example.com/`id`",
            "https://a.com/?[0]=^",
        ),
    ),
    "too long": (
        "https://hooks.example.com/" + "a" * 2048,
        "https://" + "a" * 100_000 + ".com/",
        "https://hooks.example.com/?" + "a=b&" * 1000,
    ),
}


def all_refused_urls() -> list[tuple[str, str]]:
    """Every (kind, url)."""
    return [(kind, url) for kind, urls in REFUSED_URLS.items() for url in urls]


def refusal(guard: Guard, url: str) -> InvalidRequest:
    """The refusal of a URL, which names the field and does not repeat the URL."""
    with pytest.raises(InvalidRequest) as caught:
        guard.check(url)
    assert caught.value.field == "webhook"
    assert caught.value.detail.startswith("webhook: ")
    return caught.value
