"""What is written down: usage, metrics, traces, the audit log; and finding sessions."""
