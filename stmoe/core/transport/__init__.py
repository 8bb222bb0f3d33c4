"""How rows travel to experts and back: sorted, grouped, laid out, exchanged between devices."""
