"""Programs on multiraft: `counters.py`, the smallest one, and `kv`, a sharded and replicated key-value store."""
