"""The commands on checkpoints, one file each; `sparseinfer.cli` puts them together."""
