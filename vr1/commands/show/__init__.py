"""The command ``show``: a page on this machine on which a model is tried on images."""
