"""What is made of encoder files for the programs that load them."""
