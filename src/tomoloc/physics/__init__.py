"""Physics of the microscope and of reconstruction."""
