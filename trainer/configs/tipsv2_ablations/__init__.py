"""The ablations of TIPSv2, arXiv:2604.12012, by the number of their table."""
