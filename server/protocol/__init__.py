"""The wire types: what clients send and receive. No behaviour beyond checking bounds."""
