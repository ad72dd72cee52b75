"""Image files, LMDBs and decoded images in memory."""
