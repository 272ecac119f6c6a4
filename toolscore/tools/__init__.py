"""Which tools exist, and what they are held to."""
