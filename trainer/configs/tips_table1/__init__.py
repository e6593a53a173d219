"""The rows of table 1 of TIPS, arXiv:2410.16512: what each part of the loss brings."""
