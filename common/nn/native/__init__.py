"""The native cell: the supernet's cell in C++, see README.md."""
