"""Pseudo masks: k-means on the ignored tokens, then fusion."""
