"""What any room needs of the machine: files, locks, signals, devices."""
