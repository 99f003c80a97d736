"""Facts to grades and verdicts: what a card is good for, and whether it may go on working. Tables and small functions, all pure."""
