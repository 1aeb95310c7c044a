"""Ask an address and exit 0 if it answers 200: the images' health check.

Owns nothing. Stands alone, because the image has neither curl nor a shell's way to speak HTTP.
"""

import sys
import urllib.error
import urllib.request

TIMEOUT_S = 2.5


def main(url: str) -> int:
    """Return the exit status, and print why it is not 0."""
    # Without a proxy: the address is this container's own.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        opener.open(url, timeout=TIMEOUT_S).close()
    except urllib.error.HTTPError as error:
        print(f"{url}: {error.code} {error.read(300).decode(errors='replace')}")
        return 1
    except OSError as error:
        print(f"{url}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
