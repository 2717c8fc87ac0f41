"""Renders `RequestOutput`s as wire answers and chunks. No I/O; one renderer per endpoint."""
