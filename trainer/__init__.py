"""Stage 2: cache -> segmenter. Imports data_cache, never pipeline."""
