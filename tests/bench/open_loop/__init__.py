"""Load from many people on any running service, and a page that shows how it bore it."""
