"""Who works the shards off: Dask, in this process, on this machine or on a cluster."""
