"""Training in several processes: launch and collectives."""
