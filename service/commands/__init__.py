"""Commands beside those that serve: each one's arguments and printed lines."""
