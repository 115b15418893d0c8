"""The `tinkex` command. Each command imports what it needs when it runs, so help stays fast."""
