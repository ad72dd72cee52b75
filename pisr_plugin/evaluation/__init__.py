"""How super-resolved images are measured, and measuring them."""
