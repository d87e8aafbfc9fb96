"""Baichuan and Baichuan2 (2023, arXiv:2309.10305), 7B with rotary positions and 13B with ALiBi."""
