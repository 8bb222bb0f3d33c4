"""What surgeries, factorisations and adaptations of trained runs must do."""
