"""``mesh-lab bench``: how fast each way of publishing, consuming and both together is on this machine."""
