"""From a candidate in a catalog to a running server."""
