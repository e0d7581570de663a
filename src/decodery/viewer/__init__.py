"""Looking at a trace: read the file, find its steps, draw them in a terminal or on a page."""
