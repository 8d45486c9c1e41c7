"""Publishing runs and caches, and fetching them: `push` and `pull`."""
