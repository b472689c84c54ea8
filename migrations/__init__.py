"""The schema's history. It knows tables only; `upgrade` is run by `penstock migrate` and by `serve` at its start."""
