"""The commands of `onestep-engines`, by what they work on: arguments, printed lines."""
