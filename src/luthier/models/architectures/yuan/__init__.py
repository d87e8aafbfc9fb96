"""Yuan2.0 (IEIT-Yuan, 2023, arXiv:2311.15786): attention whose queries and keys see a filter over three tokens."""
