"""What both stages agree on: datasets, splits, views and the cache. Imports neither stage."""
