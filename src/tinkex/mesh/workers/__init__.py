"""The workers: auth, gateway, processor, client, bootstrap."""
