"""Programs that use the gateway. They meet it over the wire and import nothing of it."""
