"""What may go wrong while a command runs, and what must hold afterwards: ``make faults``."""
