"""Raw ASGI middleware: a wrapped response stream would hide a client's departure from routes."""
