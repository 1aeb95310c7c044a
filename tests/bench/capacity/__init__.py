"""How many engines a load needs: a model, the simulation that it is held against, and Redis."""
