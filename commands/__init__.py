"""The commands: options made from the settings, one call, and what is printed. Imports every other room."""
