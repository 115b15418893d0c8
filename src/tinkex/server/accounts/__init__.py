"""Who may use the server, and for what: accounts, their keys, and what a request is allowed."""
