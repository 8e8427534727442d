"""The commands of `medpix`, one module each."""
