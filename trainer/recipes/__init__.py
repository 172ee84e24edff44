"""The recipes that javisc brings."""
