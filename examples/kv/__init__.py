"""A sharded, replicated key-value store on multiraft.

machine   what a shard does with puts, gets, scans: an ordinary class
http      the HTTP API that every node serves
server    one node as a process
client    an HTTP client that retries what is safe to retry
load      bulk loading from a file
cluster   three node processes on this machine
demo      the whole story, with crashes
"""
