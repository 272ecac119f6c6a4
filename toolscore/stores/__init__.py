"""Where state is kept; the only place with database drivers."""
