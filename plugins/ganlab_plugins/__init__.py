"""The first-party plugins: one file, one idea, named by the field's word."""
