"""What an operator uses: the admin API that a node serves, and the `multiraft` command that asks it.

    node ── api ── view, routing, metrics          one node asks all others, and answers over HTTP
    cli ── client, stores ── pages ── tables       a terminal asks one node, or reads a stopped node's directory

Rules of this package: it looks and never changes anything; what it says of the cluster, it says of all nodes, with
those that did not answer named.
"""
