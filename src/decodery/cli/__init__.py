"""The command line: a thin door onto the same names and values that Python takes."""
