"""What every other part needs: types, files, processes, memory, model files, seeds."""
