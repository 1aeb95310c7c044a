"""Pictures that clients send: decoded in processes that may crash without harm."""
