"""`RequestOutput`s → wire answers and chunks. Pure; one renderer per endpoint."""
