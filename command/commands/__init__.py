"""One module per command: it parses, calls one function of a floor below, and prints."""
