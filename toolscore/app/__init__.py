"""Opens the rooms, puts settings in force, closes the rooms."""
