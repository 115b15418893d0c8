"""The endpoints: each reads a message, asks a service, and writes a message."""
