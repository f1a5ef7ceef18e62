"""The machine that vitedge runs on: facts, clocks, temperatures, power, memory, out of Linux's own files."""
