"""The Tinker API over HTTP: users, sessions, order, futures and storage around the engine."""
