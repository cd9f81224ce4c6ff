"""For operators: the HTTP admin API and the `multiraft` command-line tool."""
