"""Files, locks, signals and devices: what every room needs from the operating system."""
