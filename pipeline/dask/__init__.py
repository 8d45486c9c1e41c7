"""Runs shards with Dask: in this process, in processes on this machine, or on a cluster."""
