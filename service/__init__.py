"""The web service: requests in, batches beside the engine, pictures out."""
