"""A run that is denied what is not granted yet: each refused call is made again with what it was refused for."""
