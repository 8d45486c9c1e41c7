"""Everything that draws. Imports only data_cache; predictions and attention are passed in as arrays."""
