"""The key-value store for clients of Redis. What differs from Redis stands in docs/kv.md.

parser        requests out of bytes; replies: bytes out of answers; both without any I/O
glob          the patterns of SCAN
table         all commands: name, arity, flags, keys, and what handles them
strings       the commands that read and write keys, as calls of the store's shards
connecting    the commands about the connection and the server
transactions  MULTI, EXEC, WATCH and their kin
scanning      SCAN and DBSIZE, which concern all shards
gateway       calls of all connections, gathered into one command a shard and turn
connection    one client: requests in, replies out, in order
server        the listener, its limits, and an end in order
"""
