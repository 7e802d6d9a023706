"""Registers, structures and messages of a traced call as text, as strace would print them."""
