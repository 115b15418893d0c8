"""The server seen from outside: metrics, traces, health, and whose a log line is."""
