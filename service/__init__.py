"""The web service: requests become jobs, jobs become batches, batches become pictures."""
