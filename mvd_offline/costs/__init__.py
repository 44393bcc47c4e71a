"""What a training will cost, said before it begins: parameters, operations, memory, steps, bytes."""
