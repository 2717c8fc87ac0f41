"""The wire types: what clients send and get. No behaviour beyond bounds."""
