"""The rows of table 11 of TIPS, arXiv:2410.16512: masks, and phases in turn."""
