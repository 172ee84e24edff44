"""Tables in, tables out: decides which sample goes where, and never does it."""
