"""Which servers the world offers."""
