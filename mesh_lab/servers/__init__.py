"""Real NATS servers: find the binary, start a mesh, do things to it."""
