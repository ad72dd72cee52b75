"""From options or a file to a network that is ready, and from a photo to a larger one."""
