"""One module per HTTP filter: configuration in, a step function out."""
