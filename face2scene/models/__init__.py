"""The networks of the method: FaDeX, MapNet and the restorers."""
