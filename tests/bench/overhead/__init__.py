"""What the service costs beside an engine whose speed is known: `make bench`."""
