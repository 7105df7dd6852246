"""The typed study: a module for each section of the file, and what they must agree on.

Nothing heavier than pydantic is imported here: the Snakefile reads a study at every start.
"""
