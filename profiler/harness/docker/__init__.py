"""The user's own `docker run`: its words, its engine, its container."""
