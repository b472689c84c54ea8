"""The HTTP edge, the hot path, settings and wiring: one file reads as one request from socket to ledger."""
