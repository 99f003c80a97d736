"""Events to money: what an hour costs (price), what was used (meter), who paid (ledger), what is owed (invoice). Pure."""
