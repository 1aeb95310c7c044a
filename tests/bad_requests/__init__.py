"""A table of requests that no client should send, and what each is answered with.

One module per kind of mistake; `table` joins them, `sending` puts a row on a socket. To add rows,
extend a module's `ROWS` (kind -> rows), or write a module and name it in `table`.
"""
