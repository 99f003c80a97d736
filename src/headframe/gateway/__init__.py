"""The inference data plane: its own process, which asks nobody while it carries a request."""
