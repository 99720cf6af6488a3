"""What only notebooks use: the extension, service cells, charts, the live map, exercises.

Nothing is imported here: a service's process is a module of this package, and loads none of the others.
"""
