"""Models of others: a folder of diffusers read as a model of this project, from disk or the hub.

Owns what is derived from the folder's own settings, and what is refused. Reads no weights.
"""

from engines.adopt.folder import Overrides, adopt, autoencoder_folder
from engines.adopt.hub import Wanted, pull
from engines.adopt.tokens import write_tokenizer

__all__ = ["Overrides", "Wanted", "adopt", "autoencoder_folder", "pull", "write_tokenizer"]
