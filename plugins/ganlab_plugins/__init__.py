"""The first-party plugins; each file holds one idea and has the field's name for it."""
