"""Image pairs: preparing them, checking them, reading them."""
