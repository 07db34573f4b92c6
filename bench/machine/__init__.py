"""The machine: set-up of threads and allocator, devices, energy, roofline, timing."""
