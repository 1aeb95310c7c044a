"""Where jobs wait: one protocol, one implementation per place."""
