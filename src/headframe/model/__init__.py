"""The vocabulary: nouns, ids, units, states and their legal moves, events, commands, errors.

Nothing here decides or acts. Every other package speaks in these words; this one depends on msgspec alone.
"""
