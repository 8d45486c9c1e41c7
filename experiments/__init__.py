"""Experiments, which combine the stages: demo, reproduce, ablate, transfer, predict, export and report."""
