"""Real NATS servers: find or install the binary, start a mesh, do things to it."""
