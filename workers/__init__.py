"""What runs beside a device: data, the inner loop, the worker actor."""
