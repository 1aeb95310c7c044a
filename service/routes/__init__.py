"""One file per surface of the HTTP API."""
