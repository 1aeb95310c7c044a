"""The processes that the command starts: all in one, the API alone, a worker alone."""
