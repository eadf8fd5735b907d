"""Many requests through one ring: `scheduler` decides, `engine` runs the loop. Token ids only."""
