"""The commands of the command line: each parses options, makes one call and prints the result."""
