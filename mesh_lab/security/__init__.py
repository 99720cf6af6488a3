"""Who may come in, and what may be read on the way: certificates, keys, accounts."""
