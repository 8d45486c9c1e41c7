"""Stage 1: images -> cache. Imports data_cache, never trainer."""
