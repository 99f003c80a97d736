"""What each watt does, pure: so far what turning a mining fleet into a GPU cloud would earn."""
