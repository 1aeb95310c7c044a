"""How much each owner may spend: one protocol, one implementation per place."""
