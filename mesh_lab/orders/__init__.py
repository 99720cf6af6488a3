"""The order-processing mesh: what the notebooks build, finished.

Everything here takes a nats-py connection or a URL and needs only nats-py, msgspec and the standard library, so
that the same code runs in a notebook, in a container and against a managed NATS.
"""
