"""Networks: candidate ops, cells and the supernet."""
