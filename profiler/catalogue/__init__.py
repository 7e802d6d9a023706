"""Data: which call needs what, which check sites never matter, danger weights, devices. No control flow."""
