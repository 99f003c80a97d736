"""The HTTP API: each module a noun, each route a scope."""
