"""The explorer: a trained run, its dataset and its scores, looked at in a browser or asked over HTTP."""
