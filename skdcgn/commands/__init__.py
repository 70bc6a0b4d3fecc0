"""The commands of `python -m skdcgn`: each module has a `Config` and `main(config)`."""
