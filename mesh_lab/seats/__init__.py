"""Seats for a workshop by JupyterHub: on one machine, for each participant a home, a kernel and meshes of their own."""
