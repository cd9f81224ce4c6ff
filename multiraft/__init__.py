"""multiraft: many Raft groups in one asyncio process, and sharded, replicated services on top of them."""
