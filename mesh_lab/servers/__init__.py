"""Real NATS servers: find the binary, start a mesh, inject faults into it."""
