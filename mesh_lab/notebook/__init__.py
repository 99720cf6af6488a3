"""What only notebooks use: the extension, service cells, charts, exercises."""
