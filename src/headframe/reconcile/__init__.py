"""Wanted against seen: what the engines saw becomes state changes of jobs and nodes. Pure."""
