"""The only SQL: rows that say what is, events that say why, in one transaction under two guards (version and epoch)."""
