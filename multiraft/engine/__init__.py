"""The engine: the I/O shell around all consensus cores of one node. See engine.py."""
