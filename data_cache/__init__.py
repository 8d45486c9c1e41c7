"""What both stages agree on: datasets, splits, views and the cache. Imports no other room."""
