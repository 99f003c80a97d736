"""The gateway's choices, pure: who may ask, which replica answers, how many there should be."""
