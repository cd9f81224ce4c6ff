"""A sharded, replicated key-value store on multiraft. What it means stands in docs/kv.md.

machine    what a shard does with puts, gets, scans: an ordinary class over an ordered map of bytes
layout     how a shard lies in that map; change: what one command does to it; memory: the map, kept in memory
operations the small calls that one command may be made of; longdouble: sums of decimal texts
resp       serves clients of Redis, by those calls
sweeping   has ended keys be removed from shards that nobody writes to
http       the HTTP API that every node serves; inputs: what requests say; replica: a look at one replica
feed       the watch of a prefix, as a server gives it; token: where a watch has come to
server     one node as a process
client     an HTTP client that retries what is safe to retry; numbering: so that it is done once
watch      watching a prefix from outside
load       bulk loading from a file
cluster    three node processes on this machine
demo       the whole story, with crashes; verify: whether anything was lost
"""
