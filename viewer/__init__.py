"""Everything that draws. Imports data_cache; what needs a teacher or a student is handed to it."""
